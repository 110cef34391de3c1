"""The data sets that are known by name: their sizes, classes, statistics and licences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set before it is read; None where the folder decides."""

    title: str
    num_classes: int | None
    channels: int
    image_size: int | None  # px, of the square images that leave `load_dataset`
    mean: tuple[float, ...]  # per channel, of the training pixels in [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    licence: str


_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN, _CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FASHION = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
)
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
_LICENCES = {
    "digits": "CC BY 4.0; Alpaydin & Kaynak 1998, UCI Machine Learning Repository, "
    "the 1,797 images that scikit-learn ships",
    "fashion_mnist": "MIT; Xiao, Rasul & Vollgraf 2017, Zalando Research",
    "cifar10": "none stated; Krizhevsky 2009, technical report, University of Toronto",
    "cifar100": "none stated; Krizhevsky 2009, technical report, University of Toronto",
    "imagenet": "non-commercial research; Russakovsky et al. 2015, ILSVRC2012",
}
DATASETS = {
    "digits": DatasetInfo(
        "Digits", 10, 1, 8, (0.3053,), (0.3759,), tuple("0123456789"), _LICENCES["digits"]
    ),
    "fashion_mnist": DatasetInfo(
        "Fashion-MNIST", 10, 1, 28, (0.2860,), (0.3530,), _FASHION, _LICENCES["fashion_mnist"]
    ),
    "cifar10": DatasetInfo(
        "CIFAR-10", 10, 3, 32, _CIFAR10_MEAN, _CIFAR10_STD, _CIFAR10, _LICENCES["cifar10"]
    ),
    "cifar100": DatasetInfo(
        "CIFAR-100", 100, 3, 32, _CIFAR100_MEAN, _CIFAR100_STD, _CIFAR100, _LICENCES["cifar100"]
    ),
    "imagenet": DatasetInfo(
        "ImageNet", 1000, 3, 224, _IMAGENET_MEAN, _IMAGENET_STD, None, _LICENCES["imagenet"]
    ),
    "folder": DatasetInfo(
        "Image folder", None, 3, None, _IMAGENET_MEAN, _IMAGENET_STD, None, "the user's own"
    ),
}
