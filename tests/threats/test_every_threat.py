"""Whatever lies in conf/threat: it works on every kind of image, reproducibly, within its rules."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from glr_lightning.config import build, resolve
from glr_lightning.evaluation.attempts import attempts
from glr_lightning.evaluation.row import FIELDS
from glr_lightning.threats import ImageRandom, Threat
from tests.checks.harness_cases import evaluate, images, linear
from tests.checks.refusals import refused

CONF = Path(__file__).parents[2] / "conf"


def yaml_files() -> tuple[list[str], list[str]]:
    """Threats, and presets, which are lists of threats. A certificate, which changes no image, and a set of images,
    which needs a file, have tests of their own."""
    own = {"certify", "adversarial_set"}
    files = sorted(path for path in (CONF / "threat").glob("*.yaml") if path.stem not in own)
    presets = [path.stem for path in files if "\ndefaults:" in "\n" + path.read_text()]
    return [path.stem for path in files if path.stem not in presets], presets


THREATS, PRESETS = yaml_files()
OPTIONAL = {"hopskipjump": "foolbox"}  # what has to be installed for it
BATCH_DEPENDENT = {"hopskipjump"}  # by their documentation: foolbox draws its random numbers for a batch


class TestEveryYAML:
    """Whatever lies in conf/threat works on every kind of image, reproducibly, within its rules."""

    @staticmethod
    def threats(name: str, folder: Path) -> dict[str, Threat]:
        search = f"hydra: {{searchpath: ['file://{CONF}']}}"
        (folder / "main.yaml").write_text(f"defaults: [_self_, {{threat: {name}}}]\n{search}\n")
        with initialize_config_dir(str(folder), version_base="1.3"):
            return {key: build(node, trusted=None) for key, node in resolve(compose("main"))["threat"].items()}

    @pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 64, 64)])
    @pytest.mark.parametrize("name", THREATS)
    def test_runs(self, name: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
        pytest.importorskip(OPTIONAL.get(name, "torch"))
        threats = self.threats(name, tmp_path)
        assert threats
        x, y = images(6, shape)
        y[::2] = linear(shape)(x[::2]).argmax(1)  # an attack may leave an image alone that is classified wrongly
        surrogates = sorted({name for threat in threats.values() for name in threat.surrogates or ["some"]})
        settings = {"seed": 3, "surrogate": {name: linear(shape, seed=1) for name in surrogates}}
        whole = list(evaluate(linear(shape), x, y, threats, **settings))
        batch = 6 if name in BATCH_DEPENDENT else 4
        parts = list(evaluate(linear(shape), x, y, threats, batch_size=batch, **settings))
        assert len(whole) == len(attempts(threats, surrogates))
        for left, right in zip(whole, parts, strict=True):
            assert not left.out_of_budget, left.note
            assert (left.max_linf == 0) == (left.kind == "clean")
            for field in set(FIELDS) - {"seconds"}:
                found, expected = getattr(left, field), getattr(right, field)
                assert found == (pytest.approx(expected, rel=1e-5) if type(expected) is float else expected)

    @pytest.mark.parametrize("name", sorted(set(THREATS) - BATCH_DEPENDENT))
    def test_images_depend_on_seed_and_index_alone(self, name: str, tmp_path: Path) -> None:
        (x, y), model, chosen = images(12), linear((1, 8, 8)), torch.tensor([9, 4, 4])
        for threat in self.threats(name, tmp_path).values():
            for _, parameters in threat.levels:
                whole = threat.function(model, x, y, random=ImageRandom(3, torch.arange(12)), **parameters)
                some = threat.function(model, x[chosen], y[chosen], random=ImageRandom(3, chosen), **parameters)
                torch.testing.assert_close(whole[chosen], some, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_are_made_of_them(self, name: str, tmp_path: Path) -> None:
        """And where a preset changes the epsilons, those in one norm are the same."""
        threats = self.threats(name, tmp_path)
        assert set(threats) <= set(THREATS)
        for norm in ("linf", "l2"):
            assert len({tuple(e for e, _ in each.levels) for each in threats.values() if each.norm == norm}) <= 1

    def test_corruptions_grow_with_severity(self, tmp_path: Path) -> None:
        """On smooth pictures. Glass blur's steps are not ordered in size: only its ends are compared.

        Elastic transform's levels move the pixels less and less, but tear them apart ever more; test_corruptions
        looks at that.
        """
        grid = torch.linspace(0, 6, 28)
        x = 0.5 + 0.4 * torch.sin(grid[:, None] + torch.arange(20)[:, None, None]) * torch.cos(2 * grid)
        rows = list(
            evaluate(
                linear((1, 28, 28)),
                x[:, None],
                torch.zeros(20, dtype=torch.int64),
                self.threats("corruptions_all", tmp_path),
                seed=0,
            )
        )
        for name in {row.threat for row in rows} - {"elastic_transform"}:
            sizes = [row.mean_l2 for row in rows if row.threat == name]
            assert sizes[-1] > sizes[0]
            assert sizes == sorted(sizes) or name == "glass_blur"

    def test_only_random_points_do_not_search(self, tmp_path: Path) -> None:
        found = {name: each for name in THREATS for name, each in self.threats(name, tmp_path).items()}
        assert {name for name, each in found.items() if each.kind == "attack" and not each.searches} == {"random_noise"}


OWN = """
from glr_lightning.threats import AttackFacts, declare
from glr_lightning.validation import Count, Positive

@declare(AttackFacts(norms=("linf",), gradient_sources=("autograd", "transfer"), searches=False))
def darker(model, x, y, *, random, epsilon: Positive, steps: Count = 1):
    return (x - epsilon).clamp(0.0, 1.0)

def inverted(model, x, y, *, random, share: float):
    return share * (1.0 - x) + (1.0 - share) * x
"""


def test_threats_of_another_package_need_one_source_and_one_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_threats.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    darker = {"_target_": "glr_lightning.threats.attack", "function": "own_threats.darker", "epsilon": [0.1, 0.2]}
    inverted = {"_target_": "glr_lightning.threats.corruption", "function": "own_threats.inverted", "preset": "mine"}
    inverted |= {"presets": {"mine": [{"share": 0.5}, {"share": 1.0}]}}
    threats = {name: build(node, trusted=None) for name, node in {"darker": darker, "inverted": inverted}.items()}
    assert not threats["darker"].searches
    assert threats["darker"].gradient_sources == ("autograd",)
    x, y = images(6, (1, 8, 8))
    rows = list(evaluate(linear((1, 8, 8)), x, y, threats, seed=0))
    assert [(row.threat, row.level_name, row.level) for row in rows] == [
        ("darker", "epsilon", 0.1),
        ("darker", "epsilon", 0.2),
        ("inverted", "severity", 1),
        ("inverted", "severity", 2),
    ]
    with refused("steps"):
        build(darker | {"steps": "abc"}, trusted=None)
    with refused("presets.mine[1].share"):
        build(inverted | {"presets": {"mine": [{"share": 0.5}, {"share": float("nan")}]}}, trusted=None)
