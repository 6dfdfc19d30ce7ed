# Every target first makes the checkout ready; with nothing missing that takes a few hundredths of a second.
# ARGS goes to the command: make matrix ARGS='--target "qemu-1c-*"', make test ARGS='-k deadline'.
.POSIX:
.PHONY: help matrix test bench setup quality lock clean
ARGS =

help:
	@echo 'make matrix   run the default matrix: real kernels on emulated machines, then a report'
	@echo 'make test     run the tests'
	@echo 'make bench    run the benchmarks'
	@echo 'make setup    install what is missing, and no more'
	@echo 'make quality  lint, types and layers only'
	@echo 'make lock     resolve the dependencies again (needs a network)'
	@echo 'make clean    remove .venv and what the tools cached; results/ stays'
	@echo "ARGS='...' goes to the command: make test ARGS='-k deadline'"

matrix:
	@scripts/bootstrap
	@.venv/bin/labctl run matrix $(ARGS)

test:
	@scripts/bootstrap test
	@.venv/bin/python -m pytest -n 4 --dist worksteal $(ARGS)

bench:
	@scripts/bootstrap
	@.venv/bin/python -m bench $(ARGS)

setup:
	@scripts/bootstrap test

quality:
	@scripts/bootstrap
	@.venv/bin/python -m pytest -m quality $(ARGS)

lock:
	@scripts/bootstrap
	@.venv/bin/python -m pip install -q uv
	@.venv/bin/uv pip compile pyproject.toml --extra hardware --extra virtual --group dev --generate-hashes --universal --python-version 3.11 \
		--no-config --default-index https://pypi.org/simple --custom-compile-command 'make lock' --upgrade -o requirements.lock -q

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist build
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
