# `make reproduce` and `make test` set up .venv by themselves, once.
PYTHON ?= python3
SEEDS ?= 0 1 2 3 4
STUDY ?= close_set/digits open_set/digits backdoor/digits close_set/mnist close_set/mnist_m \
  open_set/mnist backdoor/mnist open_set/cifar10 backdoor/cifar10
BIN := .venv/bin
READY := .venv/.ready

ANALYSES := synthetic_shift split_content split_criteria failures privacy
VARIANTS := ckd_only forgetting overhead generators
# Fast and broad: the notebooks as files, the face, the command line, splits, tasks and queries.
QUICK := workbook face bad_inputs objectives splitter tasks query
.PHONY: help setup reproduce lint quick test test-all test-browser lab results study story recipe \
  analyses notebooks docs licences audit clean


help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: $(READY) ## install into .venv, again only when the requirements change

# torchattacks asks for a requests of 2020; without its requirements it works with ours.
$(READY): Makefile settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1
	touch $(READY)

reproduce: $(READY) ## the main job: table, figures and records under runs/ood_trap/digits/seed-0
	$(BIN)/atesc run ood_trap --preset digits --seed 0 --out runs/ood_trap/digits/seed-0

lint: $(READY) ## ruff on notebooks, tests and tools: names, imports, format
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

quick: lint ## a smoke in a minute and a half: lint, export drift, fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(QUICK:%=tests/test_%.py)

test: lint ## lint, all module notebooks, and all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --path nbs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: test ## and the slow ones: chapters, experiments, kills, full networks; what the gate runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-browser: $(READY) ## the page explore in a real browser; wants chromium
	$(BIN)/python tools/explore_page.py

lab: $(READY) ## open the notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

results: $(READY) ## regenerate the committed records, one run a seed
	set -e; for seed in $(SEEDS); do \
	  out=runs/results/ood_trap/seed-$$seed; \
	  rm -rf $$out; \
	  $(BIN)/atesc run ood_trap --preset digits --seed $$seed --out $$out; \
	  mkdir -p results/ood_trap/seed-$$seed nbs/images; \
	  cp $$out/records.jsonl results/ood_trap/seed-$$seed/; \
	done
	rm -rf runs/results/bench
	$(BIN)/atesc run bench --preset digits --seed 0 --out runs/results/bench
	mkdir -p results/bench
	cp runs/results/bench/records.jsonl results/bench/
	cp runs/results/ood_trap/seed-0/figures/images.png nbs/images/
	$(BIN)/python tools/keep_outputs.py runs/results/ood_trap/seed-0/ood_trap.ipynb nbs/experiments/ood_trap.ipynb
	$(BIN)/python tools/keep_outputs.py runs/results/bench/bench.ipynb nbs/experiments/bench.ipynb

# The last run distils nothing: the notebook shows the records of all three kinds.
study: $(READY) ## all tasks, baselines and students, in hours; goes on where it stopped; wants data
	set -e; for run in $(STUDY); do \
	  kind=$$(echo $${run%/*} | tr _ -); preset=$${run#*/}; \
	  seeds=1; [ $$preset != digits ] || seeds=3; \
	  study="$(BIN)/atesc run study --preset $$preset --out runs/results/$$run"; \
	  $$study -p kind $$kind -p seeds $$seeds; \
	  [ $$run != close_set/mnist ] || $$study -p task 'mnist->mnist_m' -p seeds 3 -p students sl-plain; \
	  mkdir -p results/$$run; \
	  cp runs/results/$$run/records.jsonl results/$$run/; \
	done
	mkdir -p runs/results/study
	cat results/close_set/digits/records.jsonl results/open_set/digits/records.jsonl \
	  results/backdoor/digits/records.jsonl > runs/results/study/records.jsonl
	$(BIN)/atesc run study --preset digits --out runs/results/study
	$(BIN)/python tools/keep_outputs.py runs/results/study/study.ipynb nbs/experiments/study.ipynb

story: $(READY) ## teachers and long runs that the chapters show, in half an hour; then make notebooks
	mkdir -p runs/story
	cd nbs/story && ../../$(BIN)/papermill 1_the_trap.ipynb ../../runs/story/1.ipynb -p retrain True
	cd nbs/story && ../../$(BIN)/papermill 4_the_escape.ipynb ../../runs/story/4.ipynb -p remake True
	cd nbs/story && ../../$(BIN)/papermill 5_decoys.ipynb ../../runs/story/5.ipynb -p remake True

recipe: $(READY) ## what was tried for the defaults, in an hour or two; goes on where it stopped
	$(BIN)/atesc run recipe --preset digits --out runs/results/recipe
	mkdir -p results/recipe
	cp runs/results/recipe/records.jsonl results/recipe/
	$(BIN)/python tools/keep_outputs.py runs/results/recipe/recipe.ipynb nbs/experiments/recipe.ipynb

# Analyses of variants take over students that another one has distilled.
analyses: $(READY) ## one notebook a claim, in about three hours; goes on where it stopped
	set -e; for name in $(ANALYSES); do \
	  $(BIN)/atesc run $$name --preset digits --out runs/results/$$name/digits; \
	done
	set -e; for name in $(VARIANTS); do \
	  $(BIN)/atesc run $$name --preset digits --out runs/results/$$name/digits -p shared runs/results; \
	done
	set -e; for name in $(ANALYSES) $(VARIANTS); do \
	  mkdir -p results/$$name/digits; \
	  cp runs/results/$$name/digits/records.jsonl results/$$name/digits/; \
	  $(BIN)/python tools/keep_outputs.py runs/results/$$name/digits/$$name.ipynb \
	    nbs/experiments/$$name.ipynb; \
	done
	$(BIN)/atesc run report --preset digits --out runs/results/report
	$(BIN)/python tools/keep_outputs.py runs/results/report/report.ipynb nbs/experiments/report.ipynb

notebooks: $(READY) ## after an edit: export, run the notebooks, render the README, clean
	$(BIN)/python tools/export.py
	set -e; for notebook in nbs/*/[0-9]*.ipynb nbs/index.ipynb; do \
	  $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level ERROR $$notebook; \
	  $(BIN)/python tools/keep_outputs.py $$notebook $$notebook; \
	done
	$(BIN)/nbdev_clean
	$(BIN)/python tools/render_readme.py

docs: .venv/.docs ## the notebooks and the reference as a site, _docs/html; checks its links
	OMP_NUM_THREADS=1 $(BIN)/python tools/docs.py

.venv/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch .venv/.docs

licences: $(READY) ## DEPENDENCIES.md, from what is installed
	$(BIN)/python tools/licences.py

audit: $(READY) ## are vulnerabilities known of what is installed? Wants the network
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --skip-editable --path \
	  $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

clean: ## remove what was installed and made; data/ and results/ stay
	rm -rf .venv runs _docs build dist *.egg-info
