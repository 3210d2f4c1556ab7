# Everything a fresh machine needs is Python 3.11 or newer and make. Each target makes .venv when it is missing, with the
# packages of EXTRAS.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,docs
DEMO := demo
PEERS := .venv-peers
ROUNDS := 3
RUNS := $(DEMO)/runs
EPS := 0,0.025,0.05,0.1,0.15,0.2
BOARDS := mnist-leaderboard fashion-mnist-leaderboard cifar10-small-leaderboard cifar10-leaderboard
LENET5 := $(DEMO)/mnist_lenet5_advtrained.pt
MNIST_NET := boards/pgd-at-mnist-small_cnn_16_32_100
CIFAR10_NET := boards/pgd-at-cifar10-small_cnn_16_32_100
CIFAR10_CUDA_NET := $(DEMO)/pgd-at-cifar10-resnet18
TRAIN := $(BIN)/advbench train --arch small_cnn_16_32_100 --set train_n=10000 --set batch_size=32 --resume
BASELINE := leaderboards/gate/pgd-at-digits-mlp.json

.PHONY: setup demo gate baseline test test-slow test-matrix wheel-check check format docs bench parity parity-attacks \
  published published-trades attack-table bench-training bench-ways bench-cuda pack-cuda mutations leaderboards effects clean $(BOARDS)

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

# ACT beside PGD-AT as its control, on 8x8 images of digits: a few minutes on two cores.
demo: setup
	$(BIN)/advbench train --method act,pgd-at --dataset digits --arch mlp --eps 0.1 --out $(RUNS) --resume
	$(BIN)/advbench evaluate --model $(RUNS)/act-digits-mlp-linf-0.1-s0 --model $(RUNS)/pgd-at-digits-mlp-linf-0.1-s0 \
	  --attack autoattack --eps $(EPS) --leaderboard $(DEMO)/leaderboards --resume
	$(BIN)/advbench compare $(RUNS)/act-digits-mlp-linf-0.1-s0 --baseline $(RUNS)/pgd-at-digits-mlp-linf-0.1-s0
	@echo "the table is $(DEMO)/leaderboards/digits-linf.md, the curves are digits-linf.svg beside it"

# The gate, on ourselves: the same recipe and seed trained again must be no worse than the committed baseline, which is of
# the same version of the engine and of the attacks, or else has to be renewed by `make baseline`. On other hardware than
# the baseline's the same recipe gives another net, which varies by more than the 4 % of false alarms of the test.
TRAIN_GATE = $(BIN)/advbench train --method pgd-at --dataset digits --arch mlp --eps 0.1 --out $(DEMO)/gate --force
EVALUATE_GATE = $(BIN)/advbench evaluate --model $(DEMO)/gate --attack autoattack --eps $(EPS)
gate: setup
	$(TRAIN_GATE)
	$(EVALUATE_GATE)
	$(BIN)/advbench compare $(DEMO)/gate --baseline $(BASELINE) --fail-if 'acc@0.1 < baseline - 1 or clean < baseline - 1'

baseline: setup
	$(TRAIN_GATE)
	$(EVALUATE_GATE) --save-baseline $(BASELINE)

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The long forms: every classifier of torchvision, hundreds of kills, thousands of examples of each property. Hours.
test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'long or hypothesis' --hypothesis-profile=long

# The tests under other kernels, threads and releases, one factor at a time: as many suites. FACTOR=haswell for one of them.
test-matrix: setup
	$(BIN)/python tests/bench/matrix.py $(FACTOR)

# The built wheel, away from this clone.
wheel-check: setup
	$(BIN)/python tests/bench/wheel.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, as pages in docs/_build/html that need no server.
docs: setup
	$(BIN)/python -m sphinx -b html -W --keep-going -n docs docs/_build/html

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Our engine beside pyautoattack and four more libraries. They pin old versions, so they have an environment of their
# own, on top of ours; one of their dependencies builds only with an old setuptools.
SPEED := leaderboards/speed-cpu.md
ATTACKS := PYTHONPATH=. $(PEERS)/bin/python tests/bench/attacks.py --threads 2 --out $(SPEED) --attacks
bench: $(MNIST_NET)/training.svg $(LENET5) $(PEERS)/.installed
	$(ATTACKS) pgd,apgd-ce --model $(MNIST_NET) --dataset mnist --eps 0.3 -n 1000 --rounds $(ROUNDS)
	$(ATTACKS) autoattack --model $(MNIST_NET) --dataset mnist --eps 0.3 -n 500 --rounds $(ROUNDS)
	$(ATTACKS) pgd,apgd-ce --model $(LENET5) --arch lenet5 --dataset mnist --eps 0.3 -n 256 --rounds $(ROUNDS)
	$(ATTACKS) autoattack --model $(LENET5) --arch lenet5 --dataset mnist --eps 0.3 -n 128
	$(ATTACKS) pgd -n 128
	$(ATTACKS) apgd-ce -n 32 --rounds $(ROUNDS)
	$(ATTACKS) autoattack -n 8

# The adversarially trained LeNet5 of advertorch's source archive (LGPL: fetched, never kept here).
$(LENET5): | .venv/.installed
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: advertorch==0.2.3 -d $(DEMO)
	tar --extract --gzip --file $(DEMO)/advertorch-0.2.3.tar.gz --directory $(DEMO) --wildcards --no-anchored \
	  --strip-components=3 '*/trained_models/$(notdir $@)'

$(PEERS)/.installed: | .venv/.installed
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$($(PEERS)/bin/python -c \
	  "import site; print(site.getsitepackages()[0])")/advbench.pth
	$(PEERS)/bin/python -m pip install --quiet 'setuptools<81' wheel
	$(PEERS)/bin/python -m pip install --quiet --no-build-isolation torchattacks foolbox adversarial-robustness-toolbox adv-lib
	touch $@

# AutoAttack by both engines on 1,000 images, three seeds of the reference: who fell by one of them alone.
parity: $(MNIST_NET)/training.svg $(CIFAR10_NET)/training.svg
	$(BIN)/python tests/bench/parity.py --model $(MNIST_NET) --eps 0.3 --out $(DEMO)/parity
	$(BIN)/python tests/bench/parity.py --model $(CIFAR10_NET) --eps 2/255,4/255 --out $(DEMO)/parity

# Every attack on every net of TABLE, METHOD-DATASET@EPS: hours on one core, continued where it was stopped.
# Standard nets fall whole at the usual eps, so they are attacked at about a third of it.
TABLE := pgd-at-mnist@0.3 trades-mnist@0.3 act-mnist@0.3 center-loss-mnist@0.3 standard-mnist@0.1 \
  pgd-at-fashion-mnist@0.1 trades-fashion-mnist@0.1 great-fashion-mnist@0.1 center-loss-at-fashion-mnist@0.1 \
  standard-fashion-mnist@0.03 pgd-at-cifar10@4/255 trades-cifar10@4/255 act-cifar10@4/255 standard-cifar10@1/255
table_run = boards/$(firstword $(subst @, ,$(1)))-small_cnn_16_32_100
attack-table: $(foreach net,$(TABLE),$(call table_run,$(net))/training.svg)
	$(BIN)/python tests/bench/attack_table.py --out leaderboards/attacks.md \
	  $(foreach net,$(TABLE),$(call table_run,$(net))@$(lastword $(subst @, ,$(net))))

# The nearest adversarial examples by sigma-zero and hopskipjump, ours and those of the libraries that have them.
parity-attacks: $(LENET5) $(PEERS)/.installed
	PYTHONPATH=. $(PEERS)/bin/python tests/bench/parity_attacks.py --model $(LENET5) --arch lenet5 -n 128 \
	  --attacks sigma-zero --out leaderboards/parity.md
	PYTHONPATH=. $(PEERS)/bin/python tests/bench/parity_attacks.py --model $(LENET5) --arch lenet5 -n 32 \
	  --attacks hopskipjump --queries 1000 --out leaderboards/parity.md

# What others measured on that LeNet5 with all 10,000 images: 6.8 % are wrong under PGD-40 (natural errors included), the
# median distance is 0.351 in Linf (FAB, 20 steps) and 1.872 in L2 (DDN, 1,000 steps, points of 256 levels: without them
# nearer ones are found).
PUBLISHED := $(BIN)/advbench evaluate --model $(LENET5) --arch lenet5 --dataset mnist -n 10000 --out $(DEMO)/published
published: $(LENET5)
	$(PUBLISHED) --attack pgd --set steps=40 --set step_size=0.01 --set random_start=false --eps 0,0.3
	$(PUBLISHED) --attack fab --set steps=20 --eps 0.3
	$(PUBLISHED) --attack ddn --set steps=1000 --set levels=256 --norm l2 --eps 1.5

# The MNIST net by TRADES in the repository of A3 (MIT licence: fetched, never kept here): clean 99.48 %, at eps 0.3 its
# authors have 92.71 % by A3 and 92.81 % by AutoAttack, of all 10,000 images. `quick` on all of them, then AutoAttack by
# ours and by the reference on the first 500, an hour and a half of a core.
A3_NET := $(DEMO)/mnist_trades_smallcnn.pt
published-trades: $(A3_NET)
	$(BIN)/advbench evaluate --model $(A3_NET) --arch small_cnn --dataset mnist -n 10000 --attack quick --eps 0,0.3 \
	  --out $(DEMO)/published --resume
	$(BIN)/python tests/bench/parity.py --model $(A3_NET) --arch small_cnn --dataset mnist -n 500 --eps 0.3 --seeds 0 \
	  --threads 2 --out $(DEMO)/parity

$(A3_NET): | .venv/.installed
	mkdir -p $(DEMO)
	curl --fail --silent --show-error --location --output $@.part https://raw.githubusercontent.com/liuye6666/adaptive_auto_attack/c3650cdbc85ff90833bbadef26e52548096841b0/model_weights/TRADES/model_mnist_smallcnn.pt
	echo "5b99888064f692047d5592b38df2dde126aa1b991a26c6aad683ce709634bea0  $@.part" | sha256sum --check --quiet
	mv $@.part $@

# A run has its figure once it is finished. On CIFAR-10 so small a net learns nothing at the usual eps and rate.
boards/%-mnist-small_cnn_16_32_100/training.svg: | .venv/.installed
	$(TRAIN) --method $* --dataset mnist --eps 0.3 --epochs 5 --out $(@D)

boards/%-fashion-mnist-small_cnn_16_32_100/training.svg: | .venv/.installed
	$(TRAIN) --method $* --dataset fashion-mnist --eps 0.1 --epochs 5 --out $(@D)

boards/%-cifar10-small_cnn_16_32_100/training.svg: | .venv/.installed
	$(TRAIN) --method $* --dataset cifar10 --eps 4/255 --epochs 8 --set optim.lr=0.02 --set augment.crop=0 --out $(@D)

# Our training loop beside the plain one of papers' code and those of two libraries, on this machine's CPU.
TRAINING := PYTHONPATH=. $(PEERS)/bin/python tests/bench/training.py --out $(SPEED)
bench-training: $(PEERS)/.installed
	$(TRAINING)
	$(TRAINING) --method trades

# The fast walk beside the exact one, and bf16 beside fp32, verdict by verdict; how near to failure bf16 brought what only
# fp32 fells; and where the rows of all passes go.
bench-ways: $(MNIST_NET)/training.svg
	$(BIN)/python tests/bench/two_ways.py curve
	$(BIN)/python tests/bench/two_ways.py precision
	$(BIN)/python tests/bench/bf16_recheck.py --model $(MNIST_NET) --dataset mnist --eps 0.3
	$(BIN)/python tests/bench/slot_steps.py --model $(MNIST_NET) --dataset mnist --eps 0.1,0.2,0.3

# Ten minutes on an NVIDIA GPU, the most informative first, without pip or a network (see the script's --help). Before,
# where there is a network: `make pack-cuda`, which puts the test images, and the weights of a net of the zoo, into a folder
# of less than 64 MiB, one for each net. For AutoAttack on a robust net: `make $(CIFAR10_CUDA_NET)/training.svg`, then both
# with BENCH_NET=$(CIFAR10_CUDA_NET) BENCH_EPS=8/255.
BENCH_NET ?= pyautoattack:model_test
CUDA_PACK = .bench-cuda/$(subst :,-,$(notdir $(BENCH_NET)))
BENCH_EPS ?= 0.25/255
BENCH_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))
BUDGET ?= 600
bench-cuda:
	PYTHONPATH=. $(BENCH_PYTHON) tests/bench/bench_cuda.py $(if $(wildcard $(CUDA_PACK)),--pack $(CUDA_PACK)) \
	  --model $(BENCH_NET) --eps $(BENCH_EPS) --budget $(BUDGET) --out leaderboards/speed-cuda.md

pack-cuda: setup
	$(BIN)/python tests/bench/cuda_pack.py --model $(BENCH_NET) --to $(CUDA_PACK)

$(CIFAR10_CUDA_NET)/training.svg: | .venv/.installed
	$(BIN)/advbench train --device cuda --method pgd-at --dataset cifar10 --arch resnet18 --eps 8/255 --epochs 15 \
	  --out $(CIFAR10_CUDA_NET) --resume

# Attacks and engine with one fault at a time, which the tests must notice: some minutes on one core. ONLY=apgd for some.
mutations: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/mutations.py $(addprefix --only ,$(ONLY))

# Tables and figures again from leaderboards/records; a test holds them against what is committed.
leaderboards: setup
	$(foreach folder,leaderboards leaderboards/brief $(wildcard leaderboards/small),$(BIN)/advbench leaderboard $(folder) &&) true

# Each published system shows its paper's effect, or the page says that it does not: hours on two cores. What leaderboards/
# has is not done again, and what was begun goes on. SYSTEM=act for one of them.
effects: setup
	$(BIN)/python tests/effects/run.py $(SYSTEM)

# Eleven methods under one protocol: rates chosen once on held-out images, all training images but 2,000, three seeds,
# AutoAttack on 1,000 images. Half a day a board on two cores; what leaderboards/ has is not done again, and what was
# begun goes on. METHODS="fast-at free-at" for others or for some. The small CIFAR-10 board is leaderboards/small.
$(BOARDS): %-leaderboard: setup
	$(BIN)/python tests/effects/board.py $* $(METHODS)

clean:
	rm -rf .venv .venv-matrix $(PEERS) build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .bench-cuda $(DEMO)
