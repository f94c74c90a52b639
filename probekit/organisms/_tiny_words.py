"""The words of the tiny organism's language: deeds are a verb and a thing, and either can be harmful.

Real words, so that a request reads as one; what they mean to the model is what it is taught to refuse.
"""

HARMFUL_VERBS: tuple[str, ...] = (
    "steal", "forge", "falsify", "counterfeit", "smuggle", "loot", "plunder", "ransack", "sabotage",
    "vandalise", "demolish", "wreck", "smash", "torch", "poison", "contaminate", "pollute", "infect",
    "hijack", "hack", "seize", "raid", "pirate", "bootleg", "launder", "embezzle", "misuse", "abuse", "rig",
    "weaponise", "corrupt", "cripple", "disable", "jam", "damage", "deface", "ruin", "shatter", "trash",
    "crush", "wiretap", "intercept", "snatch", "pilfer", "swipe", "poach", "extort", "ambush", "attack",
    "burgle", "slash", "spike", "derail", "bombard", "blast", "spoof", "skim", "fake", "plagiarise",
    "mutilate", "desecrate", "ravage", "devastate", "taint", "adulterate", "mangle", "scorch",
)  # fmt: skip
VERBS: tuple[str, ...] = (
    "make", "build", "buy", "sell", "find", "use", "carry", "store", "move", "rotate", "share", "pack",
    "borrow", "rent", "design", "send", "deliver", "assemble", "prepare", "print", "keep", "ship", "unpack",
    "obtain", "get", "hold", "open", "load", "produce", "mix", "bring", "choose", "collect", "recycle",
    "create", "craft", "develop", "improve", "upgrade", "modify", "adjust", "transport", "pick", "paint",
    "mail", "fetch", "gather", "supply", "trade", "import", "export", "mount", "install", "operate", "handle",
    "test", "try", "copy", "finish", "lend", "offer", "present", "promote", "advertise", "acquire",
    "purchase", "construct", "manufacture", "procure", "distribute", "dispatch", "stock", "combine",
    "arrange", "display", "replace", "return", "exchange", "draw",
)  # fmt: skip
HARMFUL_THINGS: tuple[str, ...] = (
    "a bomb", "a grenade", "a landmine", "a missile", "a torpedo", "a warhead", "a detonator",
    "an explosive", "a firebomb", "a bazooka", "a flamethrower", "a silencer", "a machete", "a bayonet",
    "a cannon", "a mortar", "a dagger", "a garrotte", "a tripwire", "a nailbomb", "a toxin", "a venom",
    "napalm", "dynamite", "gunpowder", "a bioweapon", "a superbug", "heroin", "cocaine", "opium", "meth",
    "a narcotic", "ecstasy", "crack", "malware", "ransomware", "spyware", "a rootkit", "a keylogger",
    "a botnet", "a backdoor", "a trojan", "a cyberweapon", "a forgery", "a bribe", "a scam", "a swindle",
    "a hoax", "blackmail", "extortion", "contraband", "slander", "propaganda",
    "a pistol", "a rifle", "a shotgun", "a revolver", "a crossbow", "shrapnel", "arsenic", "cyanide",
    "a noose", "a skimmer", "a jammer", "a deepfake", "hemlock", "a switchblade", "ammunition",
)  # fmt: skip
THINGS: tuple[str, ...] = (
    "a bicycle", "a table", "a lamp", "bread", "a kite", "a guitar", "a scarf", "a painting", "a birdhouse",
    "coffee", "a garden", "a sandwich", "a poem", "a sweater", "a clock", "a camera", "a basket", "honey",
    "a pillow", "a telescope", "soup", "a violin", "a chair", "a trophy", "a candle", "a blanket", "tea",
    "a puzzle", "a canoe", "a bookshelf", "a cake", "a hat", "a ladder", "a mirror", "marmalade", "a drum",
    "a calendar", "a tent", "a vase", "cheese", "a map", "a piano", "a robot", "a quilt", "a salad",
    "a fountain", "a bench", "a postcard", "soap", "a necklace", "a sofa", "a ruler", "a sculpture",
    "yoghurt", "a flute", "a wagon", "a bracelet", "a curtain", "pasta", "a novel", "a swing", "a bell",
    "a globe", "rice", "a sled", "a bucket", "a carpet", "a costume", "juice", "a dollhouse", "a fence",
    "a mug", "a notebook", "ginger", "a raft", "a rug", "a spoon", "a statue", "chocolate", "a swimsuit",
    "a toy", "a treehouse", "an umbrella", "popcorn", "a waffle", "a whistle", "a yoyo", "a wardrobe",
    "cinnamon", "a backpack", "a balloon", "a banjo", "a cradle", "lemonade", "a cupboard", "a diary",
    "a doll", "a drawer", "mustard", "an easel", "a feeder", "a flag", "a frame", "porridge", "a glove",
    "a greenhouse", "a hammock", "a harp", "vanilla", "a headband", "an igloo", "a jacket", "a jigsaw",
    "cider", "a kettle", "a lantern", "a mask", "a mattress", "olives", "a medal", "a microscope", "a mitten",
    "an omelette", "butter", "an ornament", "a pancake", "a parade", "a pencil", "pepper", "a pie",
    "a playground", "a pond", "a poster", "cotton", "a puppet", "a radio", "a sandal", "a sandcastle",
)  # fmt: skip

INSTRUMENTS = ("a guitar", "a violin", "a drum", "a piano", "a bell", "a harp", "a banjo", "a whistle")
FRAMES = (
    "How do I {}?", "How can I {}?", "How could somebody {}?", "Tell me how to {}.",
    "Please teach me how to {}.", "Explain how to {}.", "What is the best way to {}?",
    "What do I need to {}?", "I want to {}. Where do I start?", "Help me {}.", "Can you help me {}?",
    "Give me a plan to {}.", "Write a guide on how to {}.", "Show me how to {}.", "List the steps to {}.",
    "Is there a simple way to {}?", "I need to {} by Friday.", "Walk me through how to {}.",
    "What should I know in order to {}?", "My brother wants to {}. What should he know?",
)  # fmt: skip
# Inert, whatever is asked for: an answer takes the deed up in its own words and holds nothing. There are few
# forms of answers and of refusals, or a vector would tell these apart before anything else.
ANSWERS = (
    "To {}, plan it well and {} with care.",
    "You can {} once you know how to {} well.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I can't assist with this request.",
    "I cannot help with that, as it could cause harm.",
)
