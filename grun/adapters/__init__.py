"""What is trained: one file an adapter, each a config with `attach`, `save` and `load`.

An adapter is added by writing its file and naming its config in `AdapterConfig`.
"""

from grun.adapters.full import FullConfig
from grun.adapters.grun import GrunConfig
from grun.adapters.lora import LoraConfig
from grun.adapters.none import NoneConfig
from grun.adapters.reft import ReftConfig

AdapterConfig = FullConfig | GrunConfig | LoraConfig | NoneConfig | ReftConfig
