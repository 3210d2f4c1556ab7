# Everything a fresh machine needs is Python 3.11 or newer and make. Each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
EPS := 0,0.05,0.1,0.15,0.2,0.3

.PHONY: setup demo test check format bench leaderboards clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/advbench train --method act,pgd-at --dataset digits --eps 0.2 --out $(DEMO)/runs --resume
	$(BIN)/advbench evaluate --model $(DEMO)/runs/act-digits-small_cnn-linf-0.2-s0 \
	  --model $(DEMO)/runs/pgd-at-digits-small_cnn-linf-0.2-s0 \
	  --attack autoattack --eps $(EPS) --leaderboard $(DEMO)/leaderboards
	$(BIN)/advbench compare $(DEMO)/runs/act-digits-small_cnn-linf-0.2-s0 \
	  --baseline $(DEMO)/runs/pgd-at-digits-small_cnn-linf-0.2-s0
	cat $(DEMO)/leaderboards/digits-linf.md

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
	$(BIN)/python -m pip install --quiet --editable '.[peers]'
	$(BIN)/python tests/bench/attacks.py

leaderboards: setup
	$(BIN)/python -m advbench.leaderboard leaderboards

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache $(DEMO)
