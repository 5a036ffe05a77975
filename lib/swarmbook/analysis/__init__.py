"""From finished runs to statements: confidence intervals, verdicts on claims, and figures of one look."""
