"""Lines of the trainer's log."""

# The tutorial's published log, one line in mmengine's form
PUBLISHED = (
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  "
    "data_time: 0.0083  memory: 9380  loss: 2.0068\n"
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [20/51]  lr: 1.4258e-09  eta: 0:00:39  time: 1.3772  "
    "data_time: 0.0083  memory: 10580  loss: 1.9980  grad_norm: nan\n"
)
