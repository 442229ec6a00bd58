"""What a run says of itself: progress, history and TensorBoard logs, each a Keras callback."""
