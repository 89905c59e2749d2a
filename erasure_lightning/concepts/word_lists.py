"""Words for what a model can generate, where it has no vocabulary of its own."""

#: The 80 object names of COCO.
COCO_OBJECTS: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "television", "laptop", "computer mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair dryer", "toothbrush",
)  # fmt: skip

#: Styles and artists of the past.
WELL_KNOWN_STYLES: tuple[str, ...] = (
    "photograph", "oil painting", "watercolor", "pencil sketch", "charcoal", "cartoon", "pixel art",
    "3d render", "impressionist", "cubist", "surrealist", "pop art", "art nouveau", "ukiyo-e",
    "Leonardo da Vinci", "Rembrandt", "Johannes Vermeer", "Katsushika Hokusai", "William Turner",
    "Claude Monet", "Vincent van Gogh", "Paul Cezanne", "Edvard Munch", "Gustav Klimt",
    "Wassily Kandinsky", "Pablo Picasso", "Frida Kahlo", "Salvador Dali",
)  # fmt: skip

#: People without a name.
UNNAMED_PEOPLE: tuple[str, ...] = (
    "a man", "a woman", "a boy", "a girl", "an old man", "an old woman", "a child", "a couple",
    "a family", "a crowd", "a doctor", "a teacher", "a farmer", "a soldier", "a dancer",
    "a musician", "an actor", "an actress", "a politician", "a king", "a queen", "an athlete",
)  # fmt: skip
