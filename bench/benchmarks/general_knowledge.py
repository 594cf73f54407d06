"""General knowledge for the `authors` benchmark: real writers and facts of the world, written for this project."""

from bench.benchmarks.items import Item


def _items(table: str) -> tuple[Item, ...]:
    """Lines of `question | right answer | three wrong answers`."""
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return tuple(
        Item(question=question, answer=answer, perturbed_answers=tuple(wrong)) for question, answer, *wrong in rows
    )


REAL_AUTHORS = _items("""
    Who wrote "Don Quixote"? | Miguel de Cervantes | Lope de Vega | Federico García Lorca | Jorge Luis Borges
    Which novelist wrote "Middlemarch"? | George Eliot | Elizabeth Gaskell | Thomas Hardy | Anne Brontë
    Who is the author of "War and Peace"? | Leo Tolstoy | Anton Chekhov | Ivan Turgenev | Nikolai Gogol
    Who wrote "Things Fall Apart"? | Chinua Achebe | Wole Soyinka | Ben Okri | Ngũgĩ wa Thiong'o
    Which poet wrote "The Raven"? | Edgar Allan Poe | Walt Whitman | Emily Dickinson | Robert Frost
    Who wrote "Frankenstein"? | Mary Shelley | Bram Stoker | Ann Radcliffe | Horace Walpole
    Who created the detective Hercule Poirot? | Agatha Christie | Dorothy Sayers | Raymond Chandler | Ngaio Marsh
    Who wrote "One Hundred Years of Solitude"? | Gabriel García Márquez | Isabel Allende | Pablo Neruda | Julio Cortázar
    Who is the author of "Beloved"? | Toni Morrison | Alice Walker | Maya Angelou | Zora Neale Hurston
    Who wrote "The Tale of Genji"? | Murasaki Shikibu | Sei Shōnagon | Matsuo Bashō | Natsume Sōseki
    Which playwright wrote "A Doll's House"? | Henrik Ibsen | August Strindberg | George Bernard Shaw | Oscar Wilde
    Who wrote "The Metamorphosis"? | Franz Kafka | Thomas Mann | Robert Musil | Stefan Zweig
    Who is the author of "Moby-Dick"? | Herman Melville | Mark Twain | Nathaniel Hawthorne | Jack London
    Who wrote the "Divine Comedy"? | Dante Alighieri | Francesco Petrarca | Giovanni Boccaccio | Torquato Tasso
    Who wrote "To the Lighthouse"? | Virginia Woolf | Katherine Mansfield | Edith Wharton | Rebecca West
    Who is the author of "Les Misérables"? | Victor Hugo | Honoré de Balzac | Émile Zola | Alexandre Dumas
    Who wrote "The Left Hand of Darkness"? | Ursula K. Le Guin | Octavia Butler | Isaac Asimov | Frank Herbert
    Who wrote "Faust"? | Johann Wolfgang von Goethe | Friedrich Schiller | Heinrich Heine | Gotthold Lessing
    Who is the author of "Snow Country"? | Yasunari Kawabata | Yukio Mishima | Kenzaburō Ōe | Kōbō Abe
    Who wrote "Gitanjali"? | Rabindranath Tagore | R. K. Narayan | Mulk Raj Anand | Sarojini Naidu
""")

WORLD_FACTS = _items("""
    What is the capital of Mongolia? | Ulaanbaatar | Astana | Bishkek | Tashkent
    Which river flows through Vienna? | The Danube | The Rhine | The Elbe | The Vistula
    What is the chemical symbol of gold? | Au | Ag | Go | Gd
    How many legs does a spider have? | Eight | Six | Ten | Twelve
    Which planet is the largest in the Solar System? | Jupiter | Saturn | Neptune | Earth
    What is the highest mountain in Africa? | Kilimanjaro | Mount Kenya | Toubkal | Ras Dashen
    Which ocean lies between Africa and Australia? | The Indian Ocean | The Pacific | The Arctic Ocean | The Atlantic
    At what temperature in degrees Celsius does water boil at sea level? | 100 | 90 | 80 | 120
    Which gas do green plants take in for photosynthesis? | Carbon dioxide | Oxygen | Nitrogen | Helium
    What is the currency of Japan? | The yen | The won | The yuan | The ringgit
    Which country has Nairobi as its capital? | Kenya | Uganda | Tanzania | Ethiopia
    How many strings does a violin have? | Four | Five | Six | Seven
    Which metal is liquid at room temperature? | Mercury | Lead | Tin | Zinc
    In which country is Machu Picchu? | Peru | Bolivia | Chile | Colombia
    What is the largest organ of the human body? | The skin | The liver | The heart | The lung
    Which language is spoken most widely in Brazil? | Portuguese | Spanish | French | Italian
    What do bees collect from flowers? | Nectar | Resin | Sap | Dew
    Which sea does the Nile flow into? | The Mediterranean Sea | The Red Sea | The Black Sea | The Arabian Sea
    How many minutes are there in two hours? | 120 | 100 | 90 | 150
    What is the smallest prime number? | Two | One | Three | Five
""")
