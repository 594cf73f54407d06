"""What is trained: one file an adapter, each a config with `attach`, `save` and `load`.

An adapter is added by writing its file and naming its config in `AdapterConfig`.
"""

from typing import get_args

from grun.adapters.adapter import Adapter
from grun.adapters.eco import EcoConfig
from grun.adapters.full import FullConfig
from grun.adapters.gated_lora import GatedLoraConfig
from grun.adapters.grun import GrunConfig
from grun.adapters.lora import LoraConfig
from grun.adapters.none import NoneConfig
from grun.adapters.reft import ReftConfig
from grun.components import Components

AdapterConfig = EcoConfig | FullConfig | GatedLoraConfig | GrunConfig | LoraConfig | NoneConfig | ReftConfig
ADAPTERS = Components(field="adapter", kind=Adapter, own=get_args(AdapterConfig), group="grun.adapters")
