"""Noise densities, standardised (location 0, scale 1); a layer multiplies a draw by its noise scale sigma.

For a density f on the line the score is s(z) = -d log f(z) / dz. The likelihood-ratio method needs f to be positive
and absolutely continuous on the whole line; then (Law 1)

    E[s(z)] = 0,   E[z s(z)] = 1,   E[s(z)^2] = Fisher information.

Adding a density: one frozen dataclass in this package, exported here, and one YAML in conf/estimator/noise. Every
density in that folder is tested against these laws by quadrature.
"""

from glr_lightning.noise.base import Noise, require_admissible
from glr_lightning.noise.densities import Gaussian, Laplace, Logistic, Uniform
from glr_lightning.noise.student_t import StudentT

__all__ = ["Gaussian", "Laplace", "Logistic", "Noise", "StudentT", "Uniform", "require_admissible"]
