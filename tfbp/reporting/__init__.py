"""Reports of a run: progress, history and TensorBoard logs, each a Keras callback."""
