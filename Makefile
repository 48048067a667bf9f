.DEFAULT_GOAL := help
.PHONY: help demo space test lint format clean

PYTHON ?= python3
PICTURE ?= examples/demo.png
EXPRESSION ?= the violet disc
BIN := .venv/bin

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/develop: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@ .venv/runtime

# Gradio wants an older Pillow, so the page has an environment of its own.
.venv/space/ready: pyproject.toml constraints.txt hub_cards/space/requirements.txt
	$(PYTHON) -m venv .venv/space
	grep -v '^pillow==' constraints.txt > .venv/space/constraints.txt
	.venv/space/bin/pip install --disable-pip-version-check -c .venv/space/constraints.txt -e . \
		-r hub_cards/space/requirements.txt
	@touch $@

demo: .venv/runtime ## Ground an expression in a picture: make demo PICTURE=... EXPRESSION="..."
	$(BIN)/scanformer ground "$(PICTURE)" "$(EXPRESSION)" --out scan.png

space: .venv/space/ready ## Serve the demo page on this machine
	.venv/space/bin/python hub_cards/space/app.py

test: .venv/develop ## Run the tests
	$(BIN)/python -m pytest -n 2 tests

lint: .venv/develop ## Check the code's style, as the tests do
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/develop ## Bring the code into that style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches
	rm -rf .venv .cache .pytest_cache .ruff_cache
