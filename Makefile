# `make demo`, `make test`, `make test-cuda`, `make lint`: each makes .venv with the tested versions once, and reuses it.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
READY := $(VENV)/.ready

.PHONY: demo test test-cuda lint

demo: $(READY)  ## relax a crystal and drive NVT and NPT with the shipped model
	$(VENV)/bin/python examples/demo.py $(ARGS)

# two processes of one thread each
test: export OMP_NUM_THREADS = 1
test: $(READY)  ## the whole test suite; one test: make test ARGS="-n0 -k neighbours"
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-cuda: export ASE_EQUIVARIANT_TEST_DEVICE = cuda
test-cuda: export OMP_NUM_THREADS = 1
test-cuda: $(READY)  ## what runs on a GPU, which all other tests are kept from
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal \
	    $(wildcard tests/test_cuda*.py tests/test_*triton*.py) $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --constraint constraints.txt --editable ".[train,test,lint]"
	touch $@
