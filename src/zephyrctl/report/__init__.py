"""What was made, to look at: where a row comes from, and pages of rows. Reads artifacts and the ledger only."""
