# `make train` and `make test` are all it takes; README.md has the same steps without make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEBIAN := sh .ci/debian

.PHONY: train test test-fast test-torch bench soak docs lint data clean

# LeNet for ten epochs on Fashion-MNIST; only here does the bundled sample stand in for data that
# cannot be had, and it says so.
train: $(VENV)/installed data
	@$(BIN)/python -m jaxcnn.data; status=$$?; \
	if [ $$status = 0 ]; then \
	  $(BIN)/python train.py --config configs/lenet.py; \
	elif [ $$status = 3 ]; then \
	  echo '*** Fashion-MNIST cannot be had here (see above).'; \
	  echo '*** Training on the bundled SAMPLE of 2,000 images instead, with smaller batches and more'; \
	  echo '*** epochs so that LeNet learns something; its accuracy is not that on Fashion-MNIST.'; \
	  $(BIN)/python train.py --config configs/lenet.py --workdir runs/lenet-sample \
	    --config.dataset=fashion_mnist_sample --config.batch_size=32 --config.num_epochs=60; \
	else \
	  exit $$status; \
	fi

test: $(VENV)/installed data
	$(BIN)/python -m pytest -n 2

# A first verdict: the tests that take less than about two seconds each.
test-fast: $(VENV)/installed data
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The comparisons with PyTorch, in an environment of their own; prints the largest differences.
test-torch:
	$(MAKE) VENV=.venv-torch .venv-torch/torch
	.venv-torch/bin/python -m pytest -m torch -s

# All figures of speed, against PyTorch, into README.md and docs/performance.md: half an hour to three
# quarters on two cores that nothing else uses; half an hour more for bfloat16, if the processor has it.
bench: data
	$(MAKE) VENV=.venv-torch .venv-torch/torch
	.venv-torch/bin/python benchmarks/train_step.py --sides xla torch
	if .venv-torch/bin/python -m jaxcnn info | grep -q 'in bfloat16'; then \
	  .venv-torch/bin/python benchmarks/train_step.py --nets lenet_modern resnet18 vgg \
	    --dtypes bfloat16 --sides xla torch --output benchmarks/results/bfloat16.json; \
	fi
	.venv-torch/bin/python benchmarks/conv.py
	.venv-torch/bin/python benchmarks/epoch.py
	.venv-torch/bin/python benchmarks/startup.py
	.venv-torch/bin/python benchmarks/scaling.py
	.venv-torch/bin/python benchmarks/inference.py
	.venv-torch/bin/python benchmarks/memory.py
	if .venv-torch/bin/python -m jaxcnn info | grep -q 'in bfloat16'; then \
	  .venv-torch/bin/python benchmarks/gradients.py; \
	fi
	.venv-torch/bin/python benchmarks/report.py

# Kills and resumes the trainer 200 times, two at a time; about half an hour.
soak: $(VENV)/installed
	$(BIN)/python tests/faults/soak.py

# docs/walkthrough.ipynb from docs/walkthrough.py: runs every cell, about two minutes.
docs: $(VENV)/installed
	$(BIN)/python docs/build.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Debian's copy of the published files, where apt-get may install it and nothing is there yet.
data: $(VENV)/installed
	@$(BIN)/python -m jaxcnn.data --check || $(DEBIAN) dataset-fashion-mnist || true

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(DEBIAN) python3-venv
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/torch: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 expecttest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	touch $@

clean:
	rm -rf $(VENV) .venv-torch .pytest_cache .mypy_cache .ruff_cache .hypothesis
