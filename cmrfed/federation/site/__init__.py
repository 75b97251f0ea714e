"""A site: its patients, its budget, its limits and the training of one round."""
