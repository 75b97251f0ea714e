"""What an evaluation says: metrics with ids, their wording, and evaluation.json."""
