"""evaluate(network, images, labels, threats): any torch network, with no run folder."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.evaluate import evaluate
from glr_lightning.evaluation.row import Row
from glr_lightning.threats import attack
from glr_lightning.threats.attacks.fgsm import fgsm
from tests.checks.harness_cases import images, linear
from tests.checks.refusals import refused

QUICK = ["pgd_linf.steps=3", "square_linf.queries=20", "transfer_pgd.steps=3", "random_noise.draws=5"]


def test_the_first_word_of_a_threat_suggests_those_that_go_on_after_it() -> None:
    with pytest.raises(ConfigurationError, match=r"no threat=pgd\. Did you mean pgd_l(2|inf) or pgd_l(2|inf)\?"):
        evaluate(linear((1, 8, 8)), *images(4), ["pgd"])


class Functional(nn.Module):
    """Looks at values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 8), nn.Linear(64, 8)
        self.top = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) if x.isfinite().all() else x.flatten(1).nan_to_num()
        scores: Tensor = self.top(torch.tanh(self.left(flat)) * self.right(flat))
        return scores


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Functional().eval()


def rows_of(rows: list[Row]) -> list[tuple[str, float | None, str]]:
    return [(row.threat, row.level, row.gradient_source) for row in rows]


def test_names_overrides_and_values_are_threats() -> None:
    threats = ["clean", "gaussian_noise", "gaussian_noise.severities=[5]", attack(fgsm, epsilon=0.2)]
    threats[-1] = attack(fgsm, epsilon=0.2, gradient_source="autograd")
    rows = evaluate(linear((1, 8, 8)), *images(), threats)
    assert rows_of(rows) == [
        ("clean", None, "none"),
        ("gaussian_noise", 5.0, "none"),
        ("fgsm", 0.2, "autograd"),
    ]
    assert rows[0].run == rows[0].checkpoint == ""
    named = evaluate(linear((1, 8, 8)), *images(), {"mine": attack(fgsm, epsilon=0.2, gradient_source="autograd")})
    assert [row.threat for row in named] == ["mine"]
    assert named[0].correct == rows[2].correct


def test_the_same_call_gives_the_same_rows_whatever_the_batch() -> None:
    x, y = images()
    threats = ["clean", "impulse_noise", "pgd_linf", "pgd_linf.gradient_source=autograd", "pgd_linf.steps=3"]
    for one, other in zip(
        *(evaluate(linear((1, 8, 8)), x, y, threats, batch_size=size) for size in (1000, 7)), strict=True
    ):
        assert (one.correct, one.fingerprint) == (other.correct, other.fingerprint)


def test_gradients_that_the_network_does_not_have_are_left_out_and_named(network: nn.Module) -> None:
    rows = evaluate(network, *images(), ["clean", "pgd_linf", "square_linf", *QUICK[:2]])
    assert [source for name, _, source in rows_of(rows) if name == "pgd_linf"] == ["autograd"]
    pgd, square = rows[1], rows[2]
    assert "not possible on this network: straight_through, likelihood_ratio" in pgd.note
    assert "not possible" not in rows[0].note
    assert "not possible" not in square.note
    assert rows[-1].kind == "worst_case"
    assert rows[-1].correct <= min(pgd.correct, square.correct)
    with refused(None, "pgd_linf has no source of gradients", "cannot be traced at test_public_evaluate.py"):
        evaluate(network, *images(), ["pgd_linf", "pgd_linf.gradient_source=straight_through"])


def test_a_chain_has_all_gradients() -> None:
    rows = evaluate(linear((1, 8, 8)), *images(), ["pgd_linf", QUICK[0], "pgd_linf.gradient.copies=4"])
    assert [row.gradient_source for row in rows[:-1]] == ["autograd", "straight_through", "likelihood_ratio"]
    assert not any("not possible" in row.note for row in rows)


def test_a_step_that_nothing_declares_is_not_taken_for_robust(network: nn.Module) -> None:
    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).to(x)

    torch.manual_seed(0)
    stepped = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Step(), nn.Linear(16, 4)).eval()
    rows = evaluate(stepped, *images(), ["pgd_linf", "pgd_linf.gradient_source=autograd", QUICK[0]])
    assert rows[0].masked
    assert rows[0].unreliable


def test_transfer_says_which_surrogates_to_pass(network: nn.Module) -> None:
    threats = ["clean", "transfer_pgd", QUICK[2]]
    rows = evaluate(
        network, *images(), threats, surrogates={"one": linear((1, 8, 8)), "two": linear((1, 8, 8), seed=3)}
    )
    assert [row.surrogate for row in rows if row.threat == "transfer_pgd"] == ["one", "two"]
    with refused("surrogates", "fgsm takes its gradient from another network", "surrogates={'name': network}"):
        evaluate(network, *images(), [attack(fgsm, epsilon=0.1, gradient_source="transfer")])
    named = attack(fgsm, epsilon=0.1, gradient_source="transfer", surrogates="relu")
    with refused("surrogates", "surrogates={'relu': network}"):
        evaluate(network, *images(), [named], surrogates={"one": linear((1, 8, 8))})


@pytest.mark.parametrize("preset", ["standard", "honest", "paper"])
def test_without_surrogates_the_gradient_is_the_networks_own_and_rows_say_so(network: nn.Module, preset: str) -> None:
    quick = QUICK if preset == "honest" else []
    rows = evaluate(network, *images(8), [preset, *quick])
    assert not any(row.gradient_source == "transfer" for row in rows)
    told = {row.threat for row in rows if "no surrogate was given: the gradient is the network's own" in row.note}
    assert told == ({"transfer_pgd"} if preset == "honest" else {"fgsm"} if preset == "standard" else {"fgsm", "lbfgs"})
    (own,) = [row for row in evaluate(network, *images(8), ["fgsm", "fgsm.gradient_source=autograd"]) if row.level]
    same = [row for row in rows if (row.threat, row.level) == ("fgsm", 0.13) and row.gradient_source == "autograd"]
    assert [row.correct for row in same] == [own.correct]


def test_the_honest_preset_runs_on_any_network(network: nn.Module) -> None:
    rows = evaluate(network, *images(12), ["honest", *QUICK], surrogates=linear((1, 8, 8)))
    worst = [row for row in rows if row.kind == "worst_case"]
    assert [row.level for row in worst] == [0.03, 0.06, 0.1, 0.13]
    assert not any(row.unreliable for row in worst)


def test_a_network_in_training_is_tested_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4)).train()
    (row,) = evaluate(network, *images(), ["clean"])
    assert not row.randomized
    assert all(module.training for module in network.modules())


def test_images_that_ask_for_a_gradient_are_images() -> None:
    x, y = images()
    threats = ["clean", "pgd_linf", QUICK[0]]
    plain, asking = (evaluate(linear((1, 8, 8)), each, y, threats) for each in (x, x.clone().requires_grad_()))
    assert [(row.fingerprint, row.correct) for row in plain] == [(row.fingerprint, row.correct) for row in asking]


def test_certificates_take_noise_of_their_own() -> None:
    certification = Certification(radii=(0.0, 0.1), sigma=0.5, draws=50)
    rows = evaluate(linear((1, 8, 8)), *images(10), ["clean", certification])
    assert rows_of(rows)[1:] == [("certify", 0.0, "none"), ("certify", 0.1, "none")]
    with refused(None, "threat.certify.sigma=0.5"):
        evaluate(linear((1, 8, 8)), *images(10), ["certify"])


@pytest.mark.parametrize(
    ("change", "option", "words"),
    [
        ({"threats": ["fog"]}, None, "there is no threat=fog"),
        ({"threats": "clean"}, "threats", "for example threats=['clean']"),
        ({"threats": []}, "threat", "threat=[clean]"),
        ({"threats": ["pgd_linf", "pgd_linf.stepz=3"]}, None, "'stepz' in threat.pgd_linf"),
        ({"threats": ["pgd_linf", "pgd_linf.steps=abc"]}, "threat.pgd_linf.steps", "threat.pgd_linf.steps must be"),
        ({"threats": [attack(fgsm, epsilon=0.1), attack(fgsm, epsilon=0.2)]}, "threats", "give a mapping"),
        ({"threats": [3]}, "threats", "got [3]"),
        ({"threats": None}, "threats", "a list"),
        ({"threats": {"mine": 3}}, "threats", "got {'mine': 3}"),
        ({"seed": True}, "seed", "a whole number"),
        ({"surrogates": {"s": linear((1, 7, 7))}}, None, "surrogate s does not take images of shape [1, 8, 8]"),
        ({"surrogates": {"s": linear((1, 8, 8), 5)}}, "surrogates", "surrogate s must have the classes"),
        ({"images": torch.full((60, 1, 8, 8), 255.0)}, "images", "scale the pixels"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels", "int64"),
        ({"surrogates": {"s": linear((1, 8, 8)).double()}}, None, "surrogate s must be where the network is"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(change: dict[str, Any], option: str | None, words: str) -> None:
    x, y = images()
    good: dict[str, Any] = {"network": linear((1, 8, 8)), "images": x, "labels": y, "threats": ["clean"]}
    with refused(option, words):
        evaluate(**(good | change))


class Returns(nn.Module):
    """A network whose answer is made by a function."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x.flatten(1)[:, :3])


PIXELS, CLASSES = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("network", "images", "labels", "options", "words"),
    [
        (Returns(lambda x: (x, 1)), PIXELS, CLASSES, {}, "must return scores, a float tensor .* got tuple"),
        (Returns(lambda x: {"logits": x}), PIXELS, CLASSES, {}, "must return scores, .* got dict"),
        (Returns(lambda x: x.long()), PIXELS, CLASSES, {}, "must return scores, .* got torch.int64"),
        (Returns(lambda x: {}["none"]), PIXELS, CLASSES, {}, "does not take images of shape"),
        (lambda x: x, PIXELS, CLASSES, {}, "must be a torch module"),
        (None, PIXELS, CLASSES, {}, "must be a torch module"),
        (Returns(lambda x: x), PIXELS.numpy(), CLASSES, {}, "images must be a tensor, got ndarray"),
        (Returns(lambda x: x), PIXELS, CLASSES.tolist(), {}, "labels must be a tensor, got list"),
        (Returns(lambda x: x), PIXELS, CLASSES, {"batch_size": 2.5}, "batch_size must be a whole number"),
        (Returns(lambda x: x), PIXELS, CLASSES, {"surrogates": "relu"}, "surrogates must be a mapping"),
        (Returns(lambda x: x), PIXELS, CLASSES, {"surrogates": {"a": None}}, "surrogates must be a mapping"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    network: Any, images: Any, labels: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words) as refusal:
        evaluate(network, images, labels, ["clean"], **options)
    assert "\n" not in str(refusal.value)
