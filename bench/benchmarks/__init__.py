"""What is to be forgotten and kept: one file a benchmark, each a config with `load`.

A benchmark is added by writing its file and naming its config in `BenchmarkConfig`.
"""

from bench.benchmarks.authors import AuthorsConfig
from bench.benchmarks.corpora import CorporaConfig
from bench.benchmarks.questions import QuestionsConfig
from bench.benchmarks.tofu import TofuConfig
from bench.benchmarks.wmdp import WmdpConfig

BenchmarkConfig = AuthorsConfig | CorporaConfig | QuestionsConfig | TofuConfig | WmdpConfig
