"""What keeps callbacks from taking time in every step."""


class IdleInSteps:
    """Mixin for callbacks that have nothing to do between the start and the end of a batch.

    Lightning calls four hooks of every callback there, also of those that have not got them, which takes 0.1 ms in
    all; it skips those that cannot be called.
    """

    on_before_zero_grad = None
    on_before_backward = None
    on_after_backward = None
    on_before_optimizer_step = None


class IdleInEpochs(IdleInSteps):
    """Mixin for callbacks that have nothing to do between the start and the end of an epoch."""

    on_train_batch_start = None
    on_train_batch_end = None
    on_validation_batch_start = None
    on_validation_batch_end = None
