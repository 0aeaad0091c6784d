"""Commands before and after a run: plan, doctor, status, verify, clean."""
