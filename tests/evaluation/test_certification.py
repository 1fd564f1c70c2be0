"""Certificates: radii that are known in closed form, bounds that brute force cannot break, and what is refused."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import Tensor, nn

from glr_lightning.activations import HardThreshold
from glr_lightning.config import CONF_DIR, build, load_yaml
from glr_lightning.evaluation import certificate as module
from glr_lightning.evaluation.certificate import Certificate, certify, largest_shift, lower_bound
from glr_lightning.evaluation.certification import Certification
from glr_lightning.evaluation.inputs import Inputs
from glr_lightning.evaluation.row import read_rows, write_rows
from glr_lightning.networks import Shift
from glr_lightning.noise import Gaussian, Laplace, Noise
from glr_lightning.propagation.noise_averaged import NoiseAveraged
from glr_lightning.propagation.probing import ModuleFacts
from tests.checks.refusals import refused
from tests.checks.zscores import critical

ALPHA = 0.001
ndtr, ndtri = torch.special.ndtr, torch.special.ndtri


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def images(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand(n, *shape, generator=generator(seed), dtype=torch.float64)


def two_classes(w: Tensor, bias: float) -> nn.Sequential:
    """Logits +-(w x + bias): the distance from the decision is |w x + bias| / ||w||_2, or / ||w||_1 in L-infinity."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2)).double()
    network[1].weight.data = torch.stack([w, -w])
    network[1].bias.data = torch.tensor([bias, -bias], dtype=torch.float64)
    return network.eval()


def threshold_network(classes: int = 3, units: int = 3, seed: int = 3) -> nn.Sequential:
    """Of images [1, 1, 2], around whose middle the units switch."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, units), HardThreshold(), nn.Linear(units, classes)).double()
    network[1].weight.data, network[3].weight.data = (
        3 * normal(units, 2, seed=seed),
        normal(classes, units, seed=seed + 1),
    )
    network[1].bias.data, network[3].bias.data = (
        -network[1].weight.data.sum(1) / 2,
        0.1 * normal(classes, seed=seed + 2),
    )
    return network.eval()


def patterns(network: nn.Sequential, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The probability [n, patterns] of every pattern of the thresholds, and its logits [patterns, classes]."""
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(sigma))), dtype=torch.float64)
    on = ndtr(network[:2](x).detach() / sigma)[:, None]
    return torch.where(bits > 0, on, 1 - on).prod(2), network[3](bits).detach()


def votes(network: nn.Sequential, x: Tensor, sigma: Tensor) -> Tensor:
    """The exact probability of each class, [n, classes], with noise at the first layer."""
    probability, logits = patterns(network, x, sigma)
    return probability @ nn.functional.one_hot(logits.argmax(1), logits.shape[1]).double()


def assert_radius(radius: Tensor, p: Tensor, draws: int, alpha: float = ALPHA) -> None:
    """Phi^-1 of the lower bound lies z_alpha standard errors below Phi^-1(p), and spreads by one."""
    true = ndtri(p)
    error = (p * (1 - p) / draws).sqrt() * math.sqrt(2 * math.pi) * (true**2 / 2).exp()
    z = (true - radius) / error + ndtri(torch.tensor(alpha, dtype=torch.float64))
    assert z.abs().max() < critical(len(p)) + 0.2, z  # 0.2: the bound is Clopper and Pearson's, not the normal one


def test_the_lower_bound_is_clopper_and_pearsons() -> None:
    for n, hits in [(1, 0), (1, 1), (10, 3), (100, 99), (10_000, 9_321), (10_000, 10_000)]:
        for alpha in (0.3, 0.05, 1e-3, 1e-6):
            interval = binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
            assert float(lower_bound(torch.tensor([hits]), n, alpha)) == pytest.approx(
                interval.low, rel=1e-9, abs=1e-15
            )
    assert float(lower_bound(torch.tensor([10_000]), 10_000, 1e-3)) == pytest.approx(1e-3**1e-4)  # p^n = alpha


class TestClosedForm:
    """One linear layer with two classes: p = Phi(rho), and a change of rho standard deviations just reaches 1/2."""

    w, bias, draws = normal(6), 0.3, 200_000

    @pytest.mark.parametrize("sigma", [1.7, torch.tensor([0.4, 2.0], dtype=torch.float64)], ids=["scalar", "per unit"])
    def test_radius(self, sigma: float | Tensor) -> None:
        network, x = two_classes(self.w, self.bias), images(20, 1, 2, 3)
        logits = network(x).detach()
        margin = (logits[:, 0] - logits[:, 1]).abs()
        rho = margin / torch.as_tensor(sigma).expand(2).double().norm()
        found = certify(network, x, [sigma], seed=0, draws=self.draws, selection=5_000)
        assert torch.equal(found.prediction, logits.argmax(1))
        assert_radius(found.radius, ndtr(rho), self.draws)

    def test_in_pixels_it_is_the_distance_from_the_decision(self) -> None:
        network, x, sigma = two_classes(self.w, self.bias), images(1, 1, 2, 3), 1.7
        distance = (x.flatten() @ self.w + self.bias).abs()
        rho = distance * math.sqrt(2) / sigma
        for norm, length in {
            "standardised": math.sqrt(2) / sigma,
            "preactivation": math.sqrt(2),
            "l2": 1 / float(self.w.norm()),
            "linf": 1 / float(self.w.abs().sum()),
        }.items():
            assert float(rho) / largest_shift(network, x, sigma, norm) == pytest.approx(float(distance) * length), norm

    def test_it_is_false_as_often_as_the_binomial_says_and_no_more_than_alpha(self) -> None:
        """A false certificate has a radius above the true one; count those of 1,000 seeds.

        At p = 1/2 a selection that took part in the count would double the false ones.
        """
        network, alpha, n, seeds = two_classes(self.w[:1], 0.0), 0.05, 200, 1000
        for p in (0.5, 0.8):
            rho = ndtri(torch.tensor(p, dtype=torch.float64))
            x = (rho / self.w[0] / math.sqrt(2)).reshape(1, 1, 1, 1)
            enough = next(k for k in range(n + 1) if lower_bound(torch.tensor([k]), n, alpha) > p)
            rate = float(binom.sf(enough - 1, n, p))
            assert rate <= alpha
            options: dict[str, Any] = {"draws": n, "selection": n, "alpha": alpha}
            false = sum(certify(network, x, [1.0], seed=seed, **options).radius.item() > rho for seed in range(seeds))
            z = (false - seeds * rate) / math.sqrt(seeds * rate * (1 - rate))
            assert abs(z) < critical(2), (p, false, seeds * rate)

    def test_a_unanimous_vote_has_the_largest_radius_its_draws_can_prove(self) -> None:
        network, x = two_classes(torch.zeros(6, dtype=torch.float64), 1.0), images(1, 1, 2, 3)
        found = certify(network, x, [1e-3], seed=0, draws=1000, alpha=0.01)
        assert found.radius.item() == pytest.approx(float(ndtri(torch.tensor(0.01**1e-3, dtype=torch.float64))))

    def test_it_abstains_where_the_vote_is_even(self) -> None:
        network = two_classes(torch.ones(1, dtype=torch.float64), 0.0)
        found = certify(network, torch.zeros(1, 1, 1, 1, dtype=torch.float64), [1.0], seed=0)
        assert found.abstained.tolist() == [True]
        assert found.radius.tolist() == [0.0]
        assert found.correct(found.prediction, 0.0).tolist() == [False]


class TestThresholdNetwork:
    """A network without gradients, whose smoothed vote is known exactly: nothing inside the radius changes it."""

    network, x, draws = threshold_network(), images(60, 1, 1, 2), 20_000

    @pytest.mark.parametrize("sigma", [torch.full((3,), 0.8), torch.tensor([0.3, 0.8, 1.6])], ids=["equal", "per unit"])
    def test_brute_force_finds_no_change_inside_the_radius(self, sigma: Tensor) -> None:
        """In 360 directions at each image's very radius, in each norm. False alarms: alpha times 60 images, 6e-5."""
        sigma = sigma.double()
        found = certify(self.network, self.x, [sigma], seed=0, draws=self.draws, alpha=1e-6)
        assert torch.equal(
            votes(self.network, self.x, sigma).argmax(1)[~found.abstained], found.prediction[~found.abstained]
        )
        assert (found.radius > 0.3).double().mean() > 0.5
        weight = self.network[1].weight.detach()
        angle = torch.arange(360).double().deg2rad()
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        length = {
            "standardised": (direction @ weight.T / sigma).norm(dim=1),
            "preactivation": (direction @ weight.T).norm(dim=1),
            "l2": direction.norm(dim=1),
            "linf": direction.abs().amax(1),
        }
        for norm in module.NORMS:
            radius = found.radius / largest_shift(self.network, self.x, sigma, norm)

            def kept(scale: float, radius: Tensor = radius, norm: str = norm) -> Tensor:
                moved = self.x.flatten(1)[:, None] + scale * radius[:, None, None] * direction / length[norm][:, None]
                winner = votes(self.network, moved.reshape(-1, 1, 1, 2), sigma).argmax(1).reshape(len(radius), -1)
                return (winner == found.prediction[:, None]).all(1) | found.abstained

            assert kept(1.0).all(), norm
            assert not kept(4.0).all(), norm

    def test_noise_of_any_density_above_the_first_layer(self) -> None:
        """Two classes: of a difference t of logits the noise turns P(b (L1 - L2) > -t), Gaussian or Laplace."""
        network, sigma, b = threshold_network(classes=2), torch.full((3,), 0.8).double(), 0.6
        probability, logits = patterns(network, self.x, sigma)
        t = logits[:, 0] - logits[:, 1]
        tail = torch.exp(-t.abs() / b) * (2 + t.abs() / b) / 4
        laplace = torch.where(t > 0, 1 - tail, tail)
        densities: list[tuple[Noise, Tensor]] = [(Gaussian(), ndtr(t / (b * math.sqrt(2)))), (Laplace(), laplace)]
        for noise, keeps in densities:
            p = probability @ keeps
            clear = (p - 0.5).abs() > 0.1
            p = torch.maximum(p, 1 - p)
            found = certify(network, self.x, [0.8, b], seed=0, noise=noise, draws=self.draws, selection=1000)
            assert_radius(found.radius[clear], p[clear], self.draws)

    def test_depends_on_neither_batch_nor_chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def of(batch_size: int, chunk: int, some: slice = slice(None), seed: int = 0) -> Certificate:
            monkeypatch.setattr(module, "CHUNK", chunk)
            model = NoiseAveraged(self.network, Gaussian(), (0.8, 0.3), passes=2).eval()
            x = self.x[some]
            inputs = Inputs(model, x, torch.zeros(len(x)).long(), seed, batch_size=batch_size)
            return Certification(draws=500).certificate(inputs)

        whole = of(60, 2**20)
        for part, some in [
            (of(60, 2000), slice(None)),
            (of(7, 2**20), slice(None)),
            (of(3, 1, slice(20, 24)), slice(20, 24)),
        ]:
            assert torch.equal(part.prediction, whole.prediction[some])
            assert torch.equal(part.radius, whole.radius[some])
        assert not torch.equal(of(60, 2**20, seed=1).radius, whole.radius)


class TestLargestShift:
    """The bounds of the first layer, against the layer as a matrix: exact norms, and all corners of the cube."""

    @pytest.mark.parametrize("scale", [1.0, torch.tensor([0.2, 1.0, 3.0, 0.5])], ids=["scalar", "per unit"])
    def test_linear(self, scale: float | Tensor) -> None:
        for seed in range(20):
            network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double()
            network[1].weight.data = normal(4, 9, seed=seed)
            network[1].weight.data[:, 3] = 0.0  # a pixel that nothing reads
            network[1].weight.data[:, 5] *= 20.0 * (seed % 2)
            self.compare(network, (1, 3, 3), scale, exact=True, slack=1.6)

    @pytest.mark.parametrize(
        "options",
        [
            {"kernel_size": 2},
            {"kernel_size": 3, "padding": 1},
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"kernel_size": 2, "stride": 2},
            {"kernel_size": 2, "stride": 2, "dilation": 2},
            {"kernel_size": (3, 2), "padding": "same", "dilation": (1, 2)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("scales", ["one", "per channel", "per place"])
    def test_convolution(self, options: dict[str, Any], scales: str) -> None:
        for seed in range(3):
            network = nn.Sequential(nn.Conv2d(1, 3, **options)).double()
            network[0].weight.data = normal(*network[0].weight.shape, seed=seed)
            site = network(torch.zeros(1, 1, 5, 3).double())[0].shape
            scale = torch.rand(site if scales == "per place" else (3, 1, 1), generator=generator(seed)) + 0.1
            slack = math.inf if scales == "per place" else 4.0
            self.compare(network, (1, 5, 3), 0.7 if scales == "one" else scale, exact=False, slack=slack)

    @staticmethod
    def compare(network: nn.Module, shape: tuple[int, ...], scale: Any, *, exact: bool, slack: float) -> None:
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        with torch.no_grad():
            shift = network(basis) - network(torch.zeros_like(basis))
        standardised = (shift / torch.as_tensor(scale, dtype=torch.float64)).flatten(1)
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(basis) - 1)), dtype=torch.float64)
        corners = torch.cat([torch.ones(len(corners), 1).double(), corners], 1)  # d and -d are as large
        true = {
            "l2": float(torch.linalg.matrix_norm(standardised, 2)),
            "linf": float((corners @ standardised).norm(dim=1).max()),
        }
        for norm, largest in true.items():
            bound = largest_shift(network, basis, scale, norm)
            assert largest * (1 - 1e-12) <= bound <= slack * largest, (norm, largest, bound)
        if exact:
            assert largest_shift(network, basis, scale, "l2") == pytest.approx(true["l2"], rel=1e-12)
        whitened = float(torch.as_tensor(scale, dtype=torch.float64).min())
        assert largest_shift(network, basis, scale, "preactivation") == pytest.approx(1 / whitened)


class TestRows:
    network, x = threshold_network(), images(60, 1, 1, 2)
    y = (images(60, 1).flatten() * 3).long()

    def inputs(self, **other: Any) -> Inputs:
        model = NoiseAveraged(self.network, Gaussian(), (0.8, 0.3), passes=2).eval()
        return Inputs(**({"network": model, "images": self.x, "labels": self.y, "run": "r"} | other))

    def test_count_what_the_certificate_says(self, tmp_path: Path) -> None:
        certification, inputs = Certification(radii=[0, 0.2, 0.4], draws=400), self.inputs(batch_size=25)
        batches: list[int] = []
        judged = list(certification.results(inputs, "mine", lambda: batches.append(1)))
        assert len(batches) == 3
        certificate = certification.certificate(inputs)
        rows = [each.row for each in judged]
        for (level, _), each in zip(certification.levels, judged, strict=True):
            expected = (certificate.prediction == self.y) & (certificate.radius > level)
            assert torch.equal(torch.as_tensor(each.per_image.correct), expected)
            assert (each.row.level, each.row.correct) == (level, int(expected.sum()))
            assert each.row.wilson_low <= each.row.accuracy <= each.row.wilson_high
        assert rows[0].correct > rows[1].correct > rows[2].correct > 0
        assert {row.abstained for row in rows} == {float((certificate.radius == 0).double().mean())}
        row = rows[0]
        named = [
            getattr(row, key) for key in ("run", "threat", "kind", "preset", "norm", "level_name", "gradient_source")
        ]
        assert named == ["r", "mine", "certificate", "preactivation", "", "radius", "none"]
        assert (row.n, row.queries, row.noisy_passes) == (60, 500, 400)
        for word in ("alpha=0.001", "n=400", "sigma=0.8", "||W d||_2"):
            assert word in row.note
        write_rows(tmp_path / "table.csv", rows)
        assert read_rows(tmp_path / "table.csv") == rows

    def test_a_radius_that_the_draws_cannot_prove_is_said_to_be_one(self) -> None:
        network, x = two_classes(torch.zeros(2, dtype=torch.float64), 1.0), images(5, 1, 1, 2)
        inputs = self.inputs(network=network, images=x, labels=torch.zeros(5).long())
        most = 0.01 * float(ndtri(torch.tensor(0.001**0.01, dtype=torch.float64)))  # of 100 draws: 1.5 sigma
        certification = Certification(radii=[0.99 * most, 1.01 * most], draws=100, sigma=0.01)
        below, above = (each.row for each in certification.results(inputs))
        assert (below.accuracy, above.accuracy) == (1.0, 0.0)
        assert "raise draws" not in below.note
        assert above.note.endswith("100 draws prove no radius above 0.015: raise draws")

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_pixels_are_a_norm_of_the_row(self, norm: str) -> None:
        certification, inputs = Certification(draws=100, norm=norm), self.inputs()
        row = next(certification.results(inputs)).row
        assert (row.norm, row.preset) == (norm, norm)
        standardised = dataclasses.replace(certification, norm="standardised").certificate(inputs)
        expected = standardised.radius / largest_shift(self.network, self.x, 0.8, norm)
        assert torch.equal(certification.certificate(inputs).radius, expected)

    def test_noise_of_its_own_replaces_the_trainings_at_the_first_layer(self) -> None:
        def radius(certification: Certification, model: nn.Module) -> Tensor:
            return certification.certificate(self.inputs(network=model)).radius

        noisy = NoiseAveraged(self.network, Laplace(), (0.8, 0.3), passes=2).eval()
        own = Certification(sigma=0.5, norm="standardised", draws=300)
        options: dict[str, Any] = {"seed": 0, "draws": 300}
        expected = certify(self.network, self.x, [0.5], **options).radius
        assert torch.equal(radius(own, self.network), expected)
        assert torch.equal(radius(dataclasses.replace(own, noise_elsewhere=False), noisy), expected)
        with_noise = certify(self.network, self.x, [0.5, 0.3], noise=Laplace(), **options).radius
        assert not torch.equal(with_noise, expected)
        assert torch.equal(radius(own, noisy), with_noise)

    def test_the_fingerprint_depends_on_everything(self) -> None:
        base, inputs = Certification(), self.inputs()
        other_noise = NoiseAveraged(self.network, Gaussian(), (torch.full((3,), 0.8 + 1e-6), 0.3), passes=2).eval()
        prints = [base.fingerprint(inputs, 0.5), base.fingerprint(inputs, 0.25)]
        changes: dict[str, Any] = {"norm": "l2", "draws": 9, "selection": 9, "alpha": 0.01, "sigma": 0.8}
        changes["noise_elsewhere"] = False
        assert set(changes) == {field.name for field in dataclasses.fields(base)} - {"radii"}
        prints += [dataclasses.replace(base, **{k: v}).fingerprint(inputs, 0.5) for k, v in changes.items()]
        others = [{"seed": 1}, {"images": self.x / 2}, {"labels": self.y * 0}, {"network": other_noise}]
        prints += [base.fingerprint(self.inputs(**other), 0.5) for other in others]
        assert len(set(prints)) == len(prints)
        # but not on the other radii of the same pass, nor on the batches
        same = Certification(radii=[0.5, 1]).fingerprint(self.inputs(batch_size=9), 0.5)
        assert same == prints[0] == next(Certification(radii=[0.5], draws=10_000).results(inputs)).row.fingerprint

    def test_the_configuration_builds_it(self) -> None:
        built = build(load_yaml(Path(CONF_DIR) / "threat" / "certify.yaml")["certify"], trusted=None)
        defaults = dataclasses.replace(Certification(), radii=built.radii)
        assert built == defaults
        assert built.levels[0] == (0.0, {})


class TestRefusals:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("radii", []),
            ("radii", [-0.1]),
            ("radii", [True]),
            ("radii", [math.inf]),
            ("radii", 0.5),
            ("norm", "l7"),
            ("draws", 0),
            ("selection", 1.5),
            ("alpha", 0.5),
            ("alpha", 0),
            ("sigma", -1.0),
        ],
    )
    def test_options(self, option: str, value: object) -> None:
        with refused(option):
            Certification(**{option: value})

    def test_norms_are_listed(self) -> None:
        with refused("norm", "choose from 'standardised'"):
            Certification(norm="l7")

    @pytest.mark.parametrize(
        ("model", "options", "words"),
        [
            (threshold_network(), {}, "threat.certify.sigma=0.5"),
            (NoiseAveraged(threshold_network(), Laplace(), (1.0, 1.0), 2), {}, "or train with noise=gaussian"),
            (nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(2, 2)), {"sigma": 1}, "got Sigmoid. Leave that out"),
            (nn.Sequential(nn.Linear(2, 2), nn.Flatten()), {"sigma": 1, "norm": "l2"}, "use norm=preactivation"),
            (
                nn.Sequential(nn.Conv2d(1, 2, 1, padding_mode="circular"), nn.Flatten()),
                {"sigma": 1, "norm": "linf"},
                "use norm=preactivation",
            ),
            (nn.Flatten(), {"sigma": 1}, "nn.Sequential"),
        ],
        ids=["no noise", "laplace", "not affine", "linear on an axis", "circular", "no chain"],
    )
    def test_networks(self, model: nn.Module, options: dict[str, Any], words: str) -> None:
        x = images(3, 1, 1, 2)
        inputs = Inputs(model.double().eval(), x, torch.zeros(3).long(), 0)
        with refused("network" if isinstance(model, nn.Flatten) else None, words):
            Certification(**options, draws=10).certificate(inputs)

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_a_module_of_ones_own_that_declares_an_isometry_is_certified(self, norm: str) -> None:
        class Flip(nn.Module):
            facts = ModuleFacts(affine=True, isometry=True)

            def forward(self, x: Tensor) -> Tensor:
                return x.flip(-1)

        plain, x = two_classes(normal(4), 0.1), images(5, 1, 2, 2)
        flipped = nn.Sequential(Flip(), *plain)
        assert largest_shift(flipped, x, 1.0, norm) == largest_shift(plain, x, 1.0, norm)
        assert torch.equal(
            certify(flipped, x.flip(-1), [1.0], seed=0, draws=50).radius,
            certify(plain, x, [1.0], seed=0, draws=50).radius,
        )
        flipped[0].facts = ModuleFacts(affine=True)
        with refused(None, "affine in the image", "got Flip"):
            largest_shift(flipped, x, 1.0, norm)

    def test_a_shift_and_a_convolution_before_the_neurons_are_certified(self) -> None:
        network = nn.Sequential(Shift(-0.5), nn.Conv2d(1, 3, 2), HardThreshold(), nn.Flatten(), nn.Linear(12, 3))
        x = images(8, 1, 3, 3)
        inputs = Inputs(network.double().eval(), x, network(x).argmax(1), 0)
        certificate = Certification(sigma=0.05, draws=200, norm="l2").certificate(inputs)
        assert (certificate.radius > 0).any()
