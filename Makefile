# Everything that a checkout needs: `make demo` shows the tool at work, `make test` is what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.pyproject.sha256

# The last activation of EfficientNet-Lite0 that has an image's axes: (N, 1280, 7, 7).
DEMO_AT := /_swish_1/Clip_output_0
DEMO_OUT := demo

.PHONY: help venv models demo pictures bench peers bench-all process-time operators zoo toys fault-bench lint types test test-slow clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Compared by content, not by time: a fresh checkout is newer than its .venv and yet needs no reinstall.
venv:  ## make .venv and install the project with its development tools, when pyproject.toml changed
	@set -e; \
	digest=$$($(PYTHON) -c 'import hashlib, sys; \
sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12"); \
print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())'); \
	if [ ! -x $(BIN)/python ] || [ "$$(cat $(STAMP) 2>/dev/null)" != "$$digest" ]; then \
		echo "Installing the project into $(VENV) (torch is large: minutes the first time)"; \
		rm -f $(STAMP); \
		[ -x $(BIN)/python ] && [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'; \
		echo "$$digest" > $(STAMP); \
	fi

models: venv  ## fetch the real models and photos into models/ and quantise one (what is there is only checked)
	@$(BIN)/python scripts/fetch_models.py
	@$(BIN)/python scripts/quantise.py

demo: models  ## explain a photo of a cat, into demo/
	$(BIN)/l2caf-onnx attend models/efficientnet-lite0.onnx models/photos/chelsea.png --at $(DEMO_AT) \
		--target top1 --labels models/imagenet_labels.json --preprocess lite --proof model -o $(DEMO_OUT) --force
	@echo "The picture:"; find $(DEMO_OUT) -name '*.png' | sort

pictures: models  ## draw the README's picture anew
	@$(BIN)/python scripts/draw_readme.py

bench: models  ## what each solver reaches and costs, as ratios to a plain forward (10 to 15 minutes)
	@$(BIN)/python -m scripts.bench

peers: venv  ## make .venv-peers with the methods of other projects (minutes, 6 GB)
	@$(BIN)/python -m scripts.peers.setup

bench-all: models peers  ## the same with the peers' rows, and how cost grows, into scripts/pictures/scaling.png
	@$(BIN)/python -m scripts.bench --peers --scaling

process-time: models  ## how long the commands take to start
	@$(BIN)/python scripts/process_time.py

operators: venv  ## ONNX's own node tests, each as a tail: right, wrong or refused
	@$(BIN)/python -W ignore scripts/operators.py

zoo: models  ## export networks by several exporters, and explain each at ten breakpoints (an hour)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,zoo]'
	@$(BIN)/python scripts/export_zoo.py
	@$(BIN)/python scripts/zoo.py

toys: venv  ## train the toy networks anew, whose right answer is known, into models/ (20 minutes)
	@$(BIN)/python scripts/train_toys.py

fault-bench: models  ## plant faults and harmless changes, and count what the regression checks say (40 minutes)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps 'onnxsim>=0.4' 'onnxslim>=0.1'
	@$(BIN)/python scripts/fault_bench.py

lint: venv  ## ruff
	@$(BIN)/ruff check --output-format concise . && $(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted: .venv/bin/ruff format"; exit 1; }

types: venv  ## mypy --strict
	@$(BIN)/mypy

test: models lint types  ## all that CI runs: lint, types and the tests
	CI=true $(BIN)/python -m pytest  # CI: pytest and others print more where it is set, so it is set everywhere

test-slow: models  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

clean:  ## remove what the tools leave behind (not .venv, not the models)
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
