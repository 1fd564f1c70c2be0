"""The exact attack: for each image an adversarial one within epsilon, or a proof that there is none."""

import torch
from torch import Tensor, nn

from glr_lightning.errors import ConfigurationError
from glr_lightning.randomness import ImageRandom
from glr_lightning.threats.attacks.input_gradient import Scores
from glr_lightning.threats.attacks.mixed_integer import Outcome, verify
from glr_lightning.threats.attacks.query import Query
from glr_lightning.threats.attacks.stages import stages_of
from glr_lightning.threats.facts import AttackFacts, declare
from glr_lightning.validation import Positive


@declare(AttackFacts(norms=("linf",), images_at_once=5))
@torch.no_grad()
def exact(
    model: Scores, x: Tensor, y: Tensor, *, random: ImageRandom, epsilon: Positive, seconds: Positive = 20.0
) -> Tensor:
    """Solve for x' with ||x' - x||_inf <= epsilon that is not predicted as y; x, x' [B, C, H, W] in [0, 1].

    By mixed-integer linear programmes over which units fire (`mixed_integer.py`). An image is left as it is where it is
    proved that there is no x', and where time runs out; the query is told which it was (`Query.note_proved`).

    seconds: for one image, by the clock.

    Raises ConfigurationError for a network that is no chain of affine layers with piecewise-constant activations or
    ReLU, or whose predictions are random.
    """
    query = Query.of(model, x)
    network = query.network
    if query.randomized or not isinstance(network, nn.Module):
        raise ConfigurationError(
            "the exact attack needs a network whose predictions are not random; use inference_noise=false, or "
            "threat=certify for a lower bound with noise.",
            option="inference_noise",
        )
    stages = stages_of(network, x.shape[1:])
    images, proved = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    right = query(x).argmax(1) == y
    for row in right.nonzero().flatten().tolist():
        own = query.take(torch.tensor([row], device=x.device))

        def predict(image: Tensor, own: Query = own) -> int:
            return int(own(image[None]).argmax())

        found = verify(stages, predict, x[row], int(y[row]), epsilon, seconds)
        images[row], proved[row] = found.image, found.outcome is Outcome.PROVED
    query.note_proved(proved)
    return images
