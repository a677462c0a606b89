"""The networks: backbones, the classifier, what is frozen."""
