"""Image-text pairs and labelled pictures on disk, and the batches a training step sees."""
