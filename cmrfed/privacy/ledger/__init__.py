"""What patients have paid: the append-only ledger, its repair, its statements, and the journal."""
