"""Hooks of the documentation's build: the generated pages, and formulas as MathML, so that no script is needed."""

import html
import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import generated

FETCHED = re.compile(
    r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*(?:src|href)="(?:https?:)?//[^"]+"'
)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_config(config: Any) -> Any:
    """Add the API pages to the navigation."""
    (reference,) = (part["Reference"] for part in config.nav if isinstance(part, dict) and "Reference" in part)
    reference.append({"Python API": [f"reference/api/{name}" for name in generated.api_pages()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from `conf/`, `src/` and the notebook."""
    pages = {
        "reference/commands.md": generated.commands_page(),
        "reference/configuration.md": generated.configuration_page(),
        **{f"reference/api/{name}": text for name, text in generated.api_pages().items()},
        "tutorial.md": generated.notebook_page(Path(config.docs_dir) / "tutorial.ipynb"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Replace LaTeX formulas by MathML, which browsers draw themselves."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "inline" if found[2] == "(" else "block"
    return latex2mathml.converter.convert(html.unescape(found[3].strip()), display=display)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from the network when it is read."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from the network: {found[0]}")
    return output
