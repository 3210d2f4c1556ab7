# Everything a fresh machine needs is Python 3.11 or newer and make. Each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
RUNS := $(DEMO)/runs
EPS := 0,0.025,0.05,0.1,0.15,0.2
BASELINE := leaderboards/records/digits/linf/326071e010d5f8e4.json

.PHONY: setup demo gate test check format bench bench-training bench-cuda leaderboards clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# ACT beside PGD-AT as its control, on 8x8 images of digits: a few minutes on two cores.
demo: setup
	$(BIN)/advbench train --method act,pgd-at --dataset digits --arch mlp --eps 0.1 --out $(RUNS) --resume
	$(BIN)/advbench evaluate --model $(RUNS)/act-digits-mlp-linf-0.1-s0 --model $(RUNS)/pgd-at-digits-mlp-linf-0.1-s0 \
	  --attack autoattack --eps $(EPS) --leaderboard $(DEMO)/leaderboards --resume
	$(BIN)/advbench compare $(RUNS)/act-digits-mlp-linf-0.1-s0 --baseline $(RUNS)/pgd-at-digits-mlp-linf-0.1-s0
	@echo "the table is $(DEMO)/leaderboards/digits-linf.md, the curves are digits-linf.svg beside it"

# The gate, on ourselves: the same recipe and seed trained again must be no worse than the committed record.
gate: setup
	$(BIN)/advbench train --method pgd-at --dataset digits --arch mlp --eps 0.1 --out $(DEMO)/gate --force
	$(BIN)/advbench evaluate --model $(DEMO)/gate --attack autoattack --eps $(EPS)
	$(BIN)/advbench compare $(DEMO)/gate --baseline $(BASELINE) --fail-if 'acc@0.1 < baseline - 1 or clean < baseline - 1'

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python tests/bench/attacks.py

# Our training loop beside the plain one of papers' code, on this machine's CPU.
bench-training: setup
	$(BIN)/python tests/bench/training.py

# On an NVIDIA GPU: training of ResNet-18 on CIFAR-10 beside the plain loop, then AutoAttack by both engines.
bench-cuda: setup
	$(BIN)/python tests/bench/training.py --cuda
	$(BIN)/python tests/bench/training.py --cuda --method trades
	for engine in own reference; do $(BIN)/advbench evaluate --device cuda --engine $$engine --out $(DEMO)/bench \
	  --model robustbench:Engstrom2019Robustness --dataset cifar10 --eps 8/255 -n 1000 || exit $$?; done

# Tables and figures again from leaderboards/records; a test holds them against what is committed.
leaderboards: setup
	$(BIN)/python -c "from pathlib import Path; from advbench.leaderboard import build; \
	  print(*build(Path('leaderboards/records'), Path('leaderboards')).files, sep='\n')"

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache $(DEMO)
