"""Parity of FGSM and PGD with foolbox, and HopSkipJump, which is foolbox's."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from glr_lightning.threats.attacks.fgsm import fgsm
from glr_lightning.threats.attacks.hopskipjump import hopskipjump
from glr_lightning.threats.attacks.pgd import pgd
from glr_lightning.threats.attacks.query import Query
from tests.checks.attack_cases import distances, inner_pictures, linear, pictures, random_of
from tests.checks.refusals import refused


class TestFoolbox:
    """The same steps as an established library, with its choices: no random start, the last iterate."""

    @pytest.fixture(scope="class")
    @staticmethod
    def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
        """A backprop network on the bundled digits, 64-32-10."""
        digits = load_digits()
        x = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
        y = torch.tensor(digits.target, dtype=torch.int64)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        return model.eval(), x[:600], y[:600]

    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize("name", ["fgsm", "pgd_linf", "pgd_l2"])
    def test_parity(self, name: str, targeted: bool, trained: tuple[nn.Sequential, Tensor, Tensor]) -> None:
        foolbox = pytest.importorskip("foolbox")
        model, x, y = trained
        epsilon = 0.8 if name == "pgd_l2" else 0.1
        settings = {"random_start": False, "steps": 10, "abs_stepsize": epsilon / 4}
        own = {"random_start": False, "steps": 10, "step_size": epsilon / 4, "early_stop": False, "epsilon": epsilon}
        theirs, ours = {
            "fgsm": (foolbox.attacks.LinfFastGradientAttack(), lambda **k: fgsm(model, x, y, epsilon=epsilon, **k)),
            "pgd_linf": (foolbox.attacks.LinfPGD(**settings), lambda **k: pgd(model, x, y, **own, **k)),
            "pgd_l2": (foolbox.attacks.L2PGD(**settings), lambda **k: pgd(model, x, y, norm="l2", **own, **k)),
        }[name]
        target = (y + 1) % 10 if targeted else None
        criteria = foolbox.criteria
        criterion = criteria.Misclassification(y) if target is None else criteria.TargetedMisclassification(target)
        if name == "fgsm" and targeted:
            theirs = foolbox.attacks.LinfBasicIterativeAttack(random_start=False, steps=1, abs_stepsize=epsilon)
        _, expected, _ = theirs(foolbox.PyTorchModel(model, bounds=(0, 1)), x, criterion, epsilons=epsilon)
        moved = ours(random=None, target=target)
        accuracies = [float((model(each).argmax(1) == y).double().mean()) for each in (x, moved, expected)]
        assert accuracies[0] > 0.95
        assert accuracies[1] < accuracies[0] - 0.1
        assert abs(accuracies[1] - accuracies[2]) <= 0.005
        assert ((moved - expected).flatten(1).abs().amax(1) < 1e-3).double().mean() > 0.95


class TestHopSkipJump:
    def test_nears_the_boundary_of_a_linear_model(self) -> None:
        pytest.importorskip("foolbox")
        model, x = linear(2), inner_pictures(30)
        y = model(x).argmax(1)
        distance = distances(model, x, y, "l2")
        before = torch.get_rng_state()
        for target in (None, 1 - y):
            random = random_of(30)
            moved = hopskipjump(model, x, y, random=random, epsilon=10.0, steps=10, target=target)
            assert torch.equal(moved, hopskipjump(model, x, y, random=random, epsilon=10.0, steps=10, target=target))
            assert (model(moved).argmax(1) != y).all()
            ratio = (moved - x).flatten(1).norm(dim=1) / distance
            assert (ratio > 0.999).all()
            assert ratio.median() < 1.25

            epsilon = float(((moved - x).flatten(1).norm(dim=1)).median())
            bounded = hopskipjump(model, x, y, random=random, epsilon=epsilon, steps=10, target=target)
            near = (moved - x).flatten(1).norm(dim=1) <= epsilon
            assert torch.equal(bounded, torch.where(near[:, None, None, None], moved, x))
        assert torch.equal(before, torch.get_rng_state())

    def test_leaves_alone_what_is_wrong_and_what_has_no_start(self) -> None:
        pytest.importorskip("foolbox")
        x = pictures(6)
        always_first = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        with torch.no_grad():
            always_first[1].weight.zero_()
            always_first[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        for label, queries in ((0, 1 + 20 + 1), (1, 1)):
            y = torch.full((6,), label)
            query = Query(always_first, x)
            assert torch.equal(hopskipjump(query, x, y, random=random_of(6), epsilon=1.0, starts=20), x)
            assert query.count.queries.tolist() == [queries] * 6

    def test_without_foolbox_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "foolbox", None)
        with refused(None, 'pip install "glr-lightning[foolbox]"'):
            hopskipjump(linear(2), inner_pictures(1), torch.zeros(1).long(), random=random_of(1), epsilon=1.0)
