"""Full fine-tuning of a model that fits no GPU whole: each worker holds its part of every weight (FSDP2)."""

import torch
from torch import Tensor

from grun.model.forward import CausalLM
from grun.model.patching import decoder_layers
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
