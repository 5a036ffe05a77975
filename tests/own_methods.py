"""Methods as a user writes them, with parameters and buffers of their own: outer and inner optimizers, a recovery."""

from swarmbook.methods.optimizers import optimizer
from swarmbook.methods.recovery import recovery
from swarmbook.methods.sync import sync


@sync("outer Adam", groups=False, alike=True, buffers=("first", "second"))
def outer_adam(x, *, beta1=0.9, beta2=0.99, eps=1e-3):
    """Adam on the mean of the outer gradients (FedAdam, arXiv 2003.00295), with bias correction."""
    for theta, phi, first, second in x:
        gradient = x.mean(theta - phi)
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        size = (second / (1 - beta2 ** (x.step + 1))).sqrt_().add_(eps)
        phi.addcdiv_(first / (1 - beta1 ** (x.step + 1)), size, value=x.lr)
        theta.copy_(phi)
    x.send_to_all()


@sync("outer Lion", buffers=("momentum",))
def outer_lion(x, *, beta1=0.9, beta2=0.99, eps=1e-3):
    """Lion (arXiv 2302.06675) on the mean of the outer gradients of a group, which pulls together as gossip does.

    Its sign is a soft one: a hard one makes a whole step of rounding, in which one process and many differ.
    """
    for theta, phi, momentum in x:
        gradient = x.mean(theta - phi)
        mixed = beta1 * momentum + (1 - beta1) * gradient
        phi.copy_(x.mean(phi)).add_(mixed / (mixed.abs() + eps), alpha=x.lr)
        momentum.lerp_(gradient, 1 - beta2)
        theta.copy_(phi)
    x.send_to_group(copies=2)


@sync("error feedback", groups=False, keeps=False, gradients=True, alike=True, buffers=("unsent",))
def error_feedback(x, *, share=0.5):
    """All-reduce of a share of the gradients' sizes: what is not sent is added to the next one (arXiv 1901.09847)."""
    for gradient, _, unsent in x:
        unsent.add_(gradient)
        sent = unsent * share
        unsent.sub_(sent)
        gradient.copy_(x.mean(sent))
    x.send_to_all()


@recovery("share of each")
def share_of_each(lost, *, previous=0.5):
    """The surviving stages beside a lost one, the one before it with this weight."""
    lost.mix(dict(zip(lost.neighbours, (previous, 1 - previous), strict=False)))


@optimizer("SGD", buffers=("momentum",), elementwise=True)
def sgd(x, *, momentum=0.9, nesterov=False):
    """torch.optim.SGD without dampening."""
    for weight, gradient, buffer in x:
        buffer.mul_(momentum).add_(gradient)
        weight.add_(gradient + momentum * buffer if nesterov else buffer, alpha=-x.lr)


@optimizer("plain SGD", elementwise=True)
def plain_sgd(x):
    """SGD that keeps nothing."""
    for weight, gradient in x:
        weight.add_(gradient, alpha=-x.lr)


@optimizer("Lion", buffers=("momentum",), elementwise=True)
def lion(x, *, beta1=0.9, beta2=0.99):
    """Lion (Chen et al. 2023, arXiv 2302.06675, Algorithm 2)."""
    for weight, gradient, momentum in x:
        weight.add_(momentum.lerp(gradient, 1 - beta1).sign_(), alpha=-x.lr)
        momentum.lerp_(gradient, 1 - beta2)


if __name__ == "__main__":
    from swarmbook.distributed.__main__ import main

    raise SystemExit(main())
