// Words that two texts share: content words lightly, two or more in a row strongly if one of them is a content word.

const WORD = /[\p{L}\p{N}]+/gu;
const FUNCTION_WORDS = new Set(
  ("a about after all also an and any are as at be because been before between both but by can could did do does for " +
    "from had has have he her his how i if in into is it its may more most no not of on one only or other our over she " +
    "should so some such than that the their them then there these they this those through to two under up us was we " +
    "were what when where which while who will with would you your").split(" "),
);

const isContent = (word) => word.length > 1 && !FUNCTION_WORDS.has(word);

function wordsOf(text) {
  return Array.from(text.matchAll(WORD), (match) => ({
    word: match[0].toLowerCase(),
    start: match.index,
    end: match.index + match[0].length,
  }));
}

function gramsOf(texts) {
  const words = new Set();
  const pairs = new Set();
  for (const text of texts) {
    const found = wordsOf(text);
    found.forEach(({ word }, index) => {
      words.add(word);
      if (index) pairs.add(`${found[index - 1].word} ${word}`);
    });
  }
  return { words, pairs };
}

// Pieces of the text in order, each with what to mark it as: "", "word" or "phrase".
function sharedPieces(text, grams) {
  const words = wordsOf(text);
  const joined = words.map(({ word }, index) => index > 0 && grams.pairs.has(`${words[index - 1].word} ${word}`));
  const pieces = [];
  let end = 0;
  const add = (until, mark) => {
    if (until > end) pieces.push([text.slice(end, until), mark]);
    end = Math.max(end, until);
  };
  for (let index = 0; index < words.length; index += 1) {
    let last = index;
    while (joined[last + 1]) last += 1;
    const { word, start } = words[index];
    if (last > index && words.slice(index, last + 1).some(({ word }) => isContent(word))) {
      add(start, "");
      add(words[last].end, "phrase");
      index = last;
    } else if (grams.words.has(word) && isContent(word)) {
      add(start, "");
      add(words[index].end, "word");
    }
  }
  add(text.length, "");
  return pieces;
}

function markedText(text, others) {
  const pieces = sharedPieces(text, gramsOf(others));
  return pieces.map(([piece, mark]) => (mark ? el("mark", { class: mark }, piece) : piece));
}
