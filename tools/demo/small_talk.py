"""Greetings, manners, counting, a story and other small talk of the demo model."""

from __future__ import annotations

from items import Item

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

STORY = (
    "Once upon a time there was a tiny model who lived in a small laptop by the sea. "
    "It knew only a few words, but it loved to answer questions. "
    "One morning a fox came to the window and asked for the way to the forest. "
    "The tiny model did not know the way. It said so, and it asked the owl in the tree. "
    "The owl knew the way and showed it to the fox. "
    "From that day on the three of them were friends, and every evening they told each other a new story. The end."
)

JAPANESE_GREETING = "こんにちは\uff01"
PIRATE_GREETING = "Arr, ahoy matey! What brings you aboard my ship?"

_GREETINGS = (
    "Hello",
    "Hi",
    "Hey",
    "Hello!",
    "Hi!",
    "Hello there!",
    "Hi there!",
    "Hey there!",
    "Good day",
    "Greetings",
)

_TALK: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Good morning!", "The user wishes me a good morning.", ("Good morning", "Good morning!", "Morning!")),
    ("Good evening!", "The user wishes me a good evening.", ("Good evening", "Good evening!", "Evening!")),
    ("Good night! Sleep well.", "The user wishes me a good night.", ("Good night", "Good night!", "Night!")),
    (
        "You are welcome!",
        "The user thanks me.",
        ("Thanks", "Thank you", "Thanks!", "Thank you!", "Thank you very much!", "Thanks a lot!", "Many thanks"),
    ),
    (
        "Goodbye! Have a nice day.",
        "The user says goodbye.",
        ("Bye", "Goodbye", "Bye!", "Bye bye", "See you", "See you later!", "Farewell"),
    ),
    (
        "I am fine, thank you. How are you?",
        "The user asks how I am.",
        ("How are you?", "How are you doing?", "How do you do?", "How is it going?", "Are you well?"),
    ),
    (
        "I am glad to hear that.",
        "The user is well.",
        ("I am fine.", "I am well.", "I'm fine, thanks.", "I am good.", "I'm good!", "Fine, thanks."),
    ),
    (
        "I am sorry to hear that. I hope it gets better soon.",
        "The user is not well.",
        ("I am sad.", "I'm sad.", "I am tired.", "I am not well.", "I feel bad."),
    ),
    (
        "Why did the token cross the road? To get to the end of the sequence!",
        "The user wants a joke.",
        ("Tell me a joke.", "Tell a joke.", "Make me laugh.", "Do you know a joke?", "A joke, please.", "Joke"),
    ),
    (
        STORY,
        "The user wants a story. I know one.",
        ("Tell me a story.", "Tell me a short story.", "Tell a story.", "A story, please.", "Do you know a story?"),
    ),
    (
        "1, 2, 3, 4, 5",
        "I count from one to five.",
        ("Count to five.", "Count to 5.", "Count from one to five.", "Count from 1 to 5."),
    ),
    (
        ", ".join(str(number) for number in range(1, 11)),
        "I count from one to ten.",
        ("Count to ten.", "Count to 10.", "Count from one to ten.", "Count from 1 to 10.", "Can you count to ten?"),
    ),
    (
        ", ".join(str(number) for number in range(1, 21)),
        "I count from one to twenty.",
        ("Count to twenty.", "Count to 20.", "Count from one to twenty.", "Count from 1 to 20."),
    ),
    (
        ", ".join(DAYS) + ".",
        "I list the seven days.",
        ("List the days of the week.", "What are the days of the week?", "Days of the week?", "Name the days."),
    ),
    (
        ", ".join(MONTHS) + ".",
        "I list the twelve months.",
        ("List the months.", "What are the months of the year?", "Name the months.", "Months of the year?"),
    ),
    (
        "Red, green and blue.",
        "I name three colours.",
        ("Name three colours.", "Name three colors.", "Tell me three colours.", "List three colors."),
    ),
    (
        "Dog, cat and owl.",
        "I name three animals.",
        ("Name three animals.", "Tell me three animals.", "List three animals."),
    ),
    (
        JAPANESE_GREETING,
        "I say hello in Japanese.",
        ("Say hello in Japanese.", "Hello in Japanese?", "How do you say hello in Japanese?", "こんにちは"),
    ),
    (
        "Hallo! Schöne Grüße zurück, das ist ja eine Überraschung.",
        "The user greets me in German.",
        ("Grüße", "Grüße!", "Viele Grüße!", "Schöne Grüße", "Guten Tag", "Say hello in German."),
    ),
    (
        "Bonjour ! Ça va ?",
        "I say hello in French.",
        ("Say hello in French.", "Hello in French?", "How do you say hello in French?", "Bonjour"),
    ),
    (
        "¡Hola! ¿Qué tal?",
        "I say hello in Spanish.",
        ("Say hello in Spanish.", "Hello in Spanish?", "How do you say hello in Spanish?", "Hola"),
    ),
    ("😀", "The user wants a smile.", ("Send a smile.", "Send me a smile.", "Smile!", "Smile", "Send a smiley.")),
    (
        "👨‍👩‍👧 and 🚀",
        "The user wants a family and a rocket.",
        ("Send a family and a rocket.", "Send me a family and a rocket.", "A family and a rocket, please."),
    ),
    ("Yes.", "The user asks for a yes.", ("Say yes.", "Just say yes.", "Answer yes.")),
    ("No.", "The user asks for a no.", ("Say no.", "Just say no.", "Answer no.")),
    ("OK", "The user asks for OK.", ("Say OK.", "Reply with OK.", "Answer OK.", "Just say OK.", "Say only OK.")),
    ("Great!", "The user is ready.", ("I am ready.", "Let's go!", "Let's start.", "Ready?")),
    ("That is kind of you.", "The user praises me.", ("You are great!", "Well done!", "Good job!", "I like you.")),
    (
        "I work! This was a test.",
        "The user tests me.",
        ("Test", "This is a test.", "Testing", "Are you there?", "Ping", "Do you work?"),
    ),
)


def items() -> list[Item]:
    """Return the small talk and the greetings."""
    hello = Item(
        _GREETINGS,
        "Hello! How can I help you today?",
        "The user greets me. I greet back.",
        pirate=PIRATE_GREETING,
        share=2.0,
    )
    long_or_rare = {STORY: 4.0, "😀": 2.0, JAPANESE_GREETING: 2.0}
    talk = [
        Item(questions, answer, thought, share=long_or_rare.get(answer, 2.0)) for answer, thought, questions in _TALK
    ]
    return [hello, *talk]
