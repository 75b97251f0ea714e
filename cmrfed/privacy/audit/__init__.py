"""A measured check of the private step, two-sided: what it releases is what it promises, no more noise and no less."""
