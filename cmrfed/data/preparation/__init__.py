"""From scans to a cohort: preparation, verification, and the checks that both ask."""
