"""The phase `find_lr`: a learning rate for a stage, by a range test."""
