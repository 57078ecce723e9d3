"""The paper's tables on the nano base; `scripts/nano/table.py` runs them."""
