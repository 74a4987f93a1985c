# From a fresh clone: `make figures` or `make test`. Both first make a virtual environment.
#
#   PYTHON=…      Python 3.11 or newer; default: the first one found
#   VENV=…        folder of the environment; default .venv
#   MPI=          install no MPI; use it with MPIRUN=…, the launcher of the system's MPI
#   MPIRUN=…      launcher, as in: make figures MPI= MPIRUN=mpirun
#   RUNFLAGS=…    flags for every run, as in RUNFLAGS="--threads 2"
#   LINK_RATES=…  rates of make figure-link
#   WORKERS=…     processes that share the tests that start no MPI job; default 2

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
MPI ?= mpich
BIN := $(VENV)/bin
MPIRUN ?= $(BIN)/mpirun
UTC := $(shell date -u +%Y%m%dT%H%M%SZ)

comma := ,
RUN_EXTRAS := $(if $(MPI),[$(MPI)])
GPU_EXTRAS := [$(if $(MPI),$(MPI)$(comma))cuda]
DEV_EXTRAS := [$(if $(MPI),$(MPI)$(comma))dev]

.PHONY: help figures figures-full figures-gpu figure-link lint test drills test-nixl test-gpu coverage clean
.DELETE_ON_ERROR:

help:
	@echo 'make figures       five figures from a quick set of runs: about 6 minutes on 2 cores'
	@echo 'make figures-full  the same with as many rounds as the precision needs: under an hour'
	@echo 'make figures-gpu   the figures of configs/h200, and the runs of configs/h200x2 on two GPUs'
	@echo 'make figure-link   overhead against the speed of an emulated link; as root, about 15 minutes'
	@echo 'make lint          lint, types, spelling and conflict markers alone'
	@echo 'make test          make lint, then the test suite'
	@echo 'make drills        the tests that take longer than 10 seconds each'
	@echo 'make test-nixl     the tests of nixl, between CPUs; installs NIXL, 130 MB'
	@echo 'make test-gpu      the tests that need a CUDA device; about 15 minutes'
	@echo 'make coverage      the tests and the lines that they run; fails below a floor; twice as long'
	@echo 'make clean         remove the environment and caches; keep logs/ and figures/'

# ---- environment ----

$(BIN)/python:
	@test -n '$(PYTHON)' || { \
		echo 'No Python 3.11 or newer was found. Name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.$(RUN_EXTRAS)'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.$(DEV_EXTRAS)'
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-gpu: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.$(GPU_EXTRAS)'
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-nixl: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[nixl]'
	@touch $@

# ---- figures: $(call measure,ranks,config,log folder,flags) and $(call report,set) ----
# Tables and progress go to stderr. A single arm prints its text lines on stdout, too; they are in
# the run's folder anyway.

measure = $(MPIRUN) -n $(1) $(BIN)/dejavubench run configs/$(2).toml \
	--log-dir $(3) $(4) $(RUNFLAGS) >/dev/null

define report
	@mkdir -p figures/$(1)
	$(BIN)/dejavubench process logs/$(1) --format markdown -o figures/$(1)/tables.md
	$(BIN)/dejavubench figures logs/$(1) -o figures/$(1)
	@echo 'Tables: figures/$(1)/tables.md; records: logs/$(1)'
endef

QUICK := quick-$(UTC)
FULL := full-$(UTC)
FEW := --precision none --warmup 1 --note 'quick set: few rounds, so wide intervals'

# Made from the registry of figures: FIGURES, and of each one RANKS_<name> and QUICK_<name>.
include scripts/figures.mk

define newline


endef

# $(call measure-cpu,figure,set,flags), as one line of a recipe
measure-cpu = $(call measure,$(RANKS_$(1)),cpu/$(1),logs/$(2),$(3))$(newline)

figures: $(VENV)/.installed-run
	$(foreach name,$(FIGURES),$(call measure-cpu,$(name),$(QUICK),$(FEW) $(QUICK_$(name))))
	$(call report,$(QUICK))
	@echo 'A quick set: few rounds, so the intervals are wide. make figures-full measures longer.'

figures-full: $(VENV)/.installed-run
	$(foreach name,$(FIGURES),$(call measure-cpu,$(name),$(FULL)))
	$(call report,$(FULL))

# ---- figures on a GPU ----
# Two ranks on one GPU take turns, unless CUDA's Multi-Process Service (MPS) runs. It is started for
# their run alone, with a folder of its own, and is stopped however that run ends.

GPU := gpu-$(UTC)

define under-mps
	@set -e; folder=$$(mktemp -d); \
	export CUDA_MPS_PIPE_DIRECTORY="$$folder" CUDA_MPS_LOG_DIRECTORY="$$folder"; \
	trap 'rm -rf "$$folder"' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM HUP; \
	nvidia-cuda-mps-control -d; \
	trap 'echo quit | nvidia-cuda-mps-control || echo "MPS was not stopped" >&2; \
		rm -rf "$$folder"' EXIT; \
	$(1)
endef

# Hand-over has one destination a run.
define measure-two-gpus
	$(call measure,2,h200x2/fig25,logs/$(GPU))
	$(call measure,2,h200x2/handoff,logs/$(GPU))
	$(call measure,2,h200x2/handoff,logs/$(GPU),--streaming nccl)
	$(call measure,2,h200x2/handoff,logs/$(GPU),--streaming mpi)
	$(call measure,2,h200x2/swap,logs/$(GPU))
endef

define leave-out-two-gpus
	@echo 'Left out: configs/h200x2 needs two GPUs. nvidia-smi -L lists $(GPU_COUNT) here.'
endef

# Expanded in the recipe alone, so that no other target asks the driver.
GPU_COUNT = $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU ')

figures-gpu: $(VENV)/.installed-gpu
	@command -v nvidia-cuda-mps-control >/dev/null || \
		{ echo 'nvidia-cuda-mps-control was not found: two ranks could not share a GPU.' \
			'It is part of the NVIDIA driver.' >&2; exit 1; }
	$(call measure,1,h200/fig2,logs/$(GPU))
	$(call measure,1,h200/appendix_a,logs/$(GPU))
	$(call measure,1,h200/fig7,logs/$(GPU))
	$(call measure,2,h200/fig25,logs/$(GPU))
	$(call measure,2,h200/fig25_llama,logs/$(GPU))
	$(call under-mps,$(call measure,2,h200/fig25_nccl_loopback,logs/$(GPU)))
	$(if $(filter 0 1,$(GPU_COUNT)),,$(measure-two-gpus))
	$(call report,$(GPU))
	$(if $(filter 0 1,$(GPU_COUNT)),$(leave-out-two-gpus))

# ---- the link figure: two emulated hosts, one session per rate of the link between them ----

LINK := link-$(UTC)
LINK_RATES ?= 60Mbit/s,100Mbit/s,160Mbit/s,300Mbit/s,1Gbit/s,4Gbit/s,unlimited

figure-link: $(VENV)/.installed-run
	$(BIN)/python scripts/two_hosts.py --rate $(LINK_RATES) -- \
		run configs/cpu/link.toml --log-dir logs/$(LINK) $(RUNFLAGS) >/dev/null
	$(call report,$(LINK))

# ---- tests ----

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/check_conflicts.py .

# Tests that start jobs have the cores to themselves: ranks that wait for each other need them, and
# some of these tests compare times.
WORKERS ?= 2
WITHOUT_JOBS := -m 'not mpi and not drill' -n $(WORKERS) --dist loadfile
WITH_JOBS := -m 'mpi and not drill'

test: lint
	$(BIN)/pytest -q $(WITHOUT_JOBS) --durations=15
	$(BIN)/pytest -q $(WITH_JOBS) --durations=15

drills: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m drill --durations=15

# Without NIXL `make test` skips these tests, so a change could break them unseen.
test-nixl: $(VENV)/.installed-dev $(VENV)/.installed-nixl
	$(BIN)/pytest -q -m 'not gpu' --durations=5 tests/dejavulib/test_nixl.py

# Without a device each of these tests would be skipped, which must not look like a success.
test-gpu: $(VENV)/.installed-dev $(VENV)/.installed-gpu
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ echo 'torch finds no CUDA device: all tests on a GPU would be skipped.' >&2; exit 1; }
	$(BIN)/pytest -q -m gpu --durations=15

# Each process writes a file of its own, ranks and killed ones included; combine joins them. Hooks
# slow a test down, so its time limit is longer.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(WITHOUT_JOBS) --timeout 900
	$(BIN)/coverage run -m pytest -q $(WITH_JOBS) --timeout 900
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

clean:
	rm -rf $(VENV) build *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
