# `make demo` and `make test` set everything up first; nothing else is needed on a fresh machine but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-lowest trials verdicts defences calibration faults papers speed speed-gpu speed-gpu-pack docs check format clean

setup: .venv/.installed

# torchattacks comes without its dependencies: it pins requests 2.25, never imports it, and mkdocs-material needs a newer one.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchattacks tqdm
	@touch $@

demo: setup
	$(BIN)/kwbench evaluate resnet18-kwta0.1 --attack all
	$(BIN)/kwbench report --html

# A file's tests stay together, for they share what is slow to make.
test: setup check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# The wheel in a fresh environment, with the oldest dependencies that it allows: a command, and tests of the record.
test-lowest:
	rm -rf build/lowest build/wheel
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check build pytest pytest-timeout
	build/lowest/bin/python -m build --wheel --outdir build/wheel .
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt build/wheel/*.whl
	cd build/wheel && ../lowest/bin/kwbench evaluate resnet18-kwta0.1 --attack noop,fgsm --n 4
	build/lowest/bin/python -m pytest -o pythonpath=tests -o filterwarnings= \
		tests/test_threat.py tests/record/test_summary.py tests/record/test_migrations.py

trials: setup
	$(BIN)/python -m pytest -m trial

verdicts: setup
	PYTHONPATH=tests $(BIN)/python tests/defences/expected_verdicts.py

# Broken defences and sound models beside a second opinion; writes reports/defences.md from defences.db, and goes on from there.
defences: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/defences/zoo/run.py

# Networks whose robust accuracy is known; writes reports/calibration.md and its figure.
calibration: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/defences/calibration.py

# The tests of every fault, and the same tests with the guard removed; writes reports/faults.md.
faults: setup
	PYTHONPATH=tests $(BIN)/python tests/faults/kit.py

papers: setup
	sh bench/papers/papers.sh

# adv-lib comes without what it plots with, which no longer builds.
speed: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps adv-lib
	sh bench/speed.sh

# One chunk of at most 8 minutes, again and again until it is done; the tables are in build/speed-gpu. It sets nothing up, for a
# GPU machine may have no network. SMOKE=1 DEVICE=cpu tests it on a CPU, in minutes.
speed-gpu:
	sh bench/speed/gpu.sh

# What a GPU machine without a network needs for it, in build/speed-gpu-pack; CIFAR10=FILE.npz adds images.
speed-gpu-pack: setup
	$(BIN)/python bench/gpu_pack.py build/speed-gpu-pack $(if $(CIFAR10),--cifar10 $(CIFAR10))

# The site, in build/docs; open index.html. Warnings are errors.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml

check: setup
	$(BIN)/ruff check bench tests
	$(BIN)/ruff format --check bench tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff check --fix bench tests
	$(BIN)/ruff format bench tests

clean:
	rm -rf .venv build dist bench/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
