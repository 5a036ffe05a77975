"""HDEE: experts that are trained apart on domains of their own, and ensembles that mix their predictions."""
