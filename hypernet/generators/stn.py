"""Self-Tuning Networks: weights that answer to hyperparameters, which are tuned while the network is trained."""

from __future__ import annotations

from pydantic import Field

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.objectives.self_tuning import SelfTuning
from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.parts import generators


class Stn(SelfTuning):
    """Options of `stn`."""

    std: float = Field(0.01, ge=0, allow_inf_nan=False, description="standard deviation of the gates at first")


@generators("stn", Stn, paper="arXiv:1903.03088")
def stn(options: Stn, site: Site) -> Design:
    """A network whose layers are y = s (W x + b) + (V_w lam) * (W_h x) + (V_b lam) * b_h.

    lam are the hyperparameters in unconstrained numbers: the condition `vector`, as it is. The weights learn to be
    what training with lam would make of them, for any lam near the present one, and lam follows the loss on data that
    is held out. Twice the target's parameters.

    MacKay et al., 2019, arXiv:1903.03088.
    """
    shape = site.condition.get("vector", ())
    if len(shape) != 1 or not shape[0]:
        raise InvalidInput("stn tunes hyperparameters, and the task has none", "a task that declares `hyperparameters`")
    return Design(
        width=shape[0],
        encoder=Chosen("vector", {"encoding": "raw", "body": False}),
        decoder=Chosen("gate", {"std": options.std}),
        base=Chosen("learned", {"factor": "layer"}),
        scale=Chosen("none"),
        objective=Chosen("self_tuning", options.model_dump(exclude={"std"})),
        course={"optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
    )
