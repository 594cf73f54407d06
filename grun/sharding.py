"""Full fine-tuning of a model that fits no GPU whole: each worker holds its part of every weight (FSDP2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from grun.lm.patching import decoder_layers
from grun.model.forward import CausalLM
from grun.workers import Workers


def shard(model: CausalLM, device: torch.device, workers: Workers) -> None:
    """Split the model's weights over the workers, in place; they are whole one decoder layer at a time.

    device: of this worker; the model may still be on the CPU. Which weights are trained is settled before.
    """
    from torch.distributed.device_mesh import init_device_mesh  # this and the next: a second of imports
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (workers.size,))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(weight: Tensor) -> Tensor:
    """A weight as it would be without sharding. Where it is sharded, every worker must ask for it."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def own_part(weight: Tensor) -> Tensor:
    """What this worker holds of a weight: all of it, where it is not sharded."""
    from torch.distributed.tensor import DTensor

    return weight.to_local() if isinstance(weight, DTensor) else weight


def joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """What all workers held of a weight, the first one's first, as `like` holds it: where it is, and again in parts
    where that is, be they more or fewer."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    together = torch.cat(list(parts)) if len(parts) > 1 else parts[0].clone()
    if isinstance(like, DTensor):
        return distribute_tensor(together, like.device_mesh, like.placements, src_data_rank=None)
    return together.to(like.device)


def whole_weights(model: CausalLM, *, keep: bool) -> dict[str, Tensor]:
    """A sharded model's state as it would be without sharding, on the CPU. Every worker must ask for it.

    keep: whether this worker is to get it; else it comes out empty.
    """
    made: dict[int, Tensor] = {}  # weights that are tied stay one
    state: dict[str, Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in made:
            together = whole(weight.detach())
            made[id(weight)] = together.cpu() if keep else together.new_empty(0)
        state[name] = made[id(weight)]
    return state if keep else {}
