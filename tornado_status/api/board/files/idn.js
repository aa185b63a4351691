// Internationalized domain names: from the canonical ASCII spelling to Unicode (RFC 3492, RFC 5891).

const PREFIX = "xn--";
// Only these have a place in a name, and one of them is not ASCII. Any other label stays as it is.
const LETTERS = /^(?=.*[^\0-\x7f])[\p{L}\p{M}\p{N}·-]+$/u;

// Returns the domain of an e-mail address in Unicode, or "" if that is the ASCII spelling.
export function unicodeDomain(email) {
  const domain = email.slice(email.lastIndexOf("@") + 1);
  if (!domain.includes(PREFIX)) return "";
  const decoded = domain.split(".").map(unicodeLabel).join(".");
  return decoded === domain ? "" : decoded;
}

function unicodeLabel(label) {
  if (!label.startsWith(PREFIX)) return label;
  const decoded = punycode(label.slice(PREFIX.length));
  const normal = decoded.normalize("NFC") === decoded && decoded.toLowerCase() === decoded;
  return normal && LETTERS.test(decoded) ? decoded : label;
}

// Decodes Punycode with the parameters of RFC 3492, section 5. Returns "" for what is none.
function punycode(text) {
  const BASE = 36, T_MIN = 1, T_MAX = 26, SKEW = 38, DAMP = 700;
  const hyphen = text.lastIndexOf("-");
  const points = [...text.slice(0, Math.max(0, hyphen))].map((letter) => letter.codePointAt(0));
  let point = 128, bias = 72, place = 0, at = hyphen + 1;
  while (at < text.length) {
    const before = place;
    for (let weight = 1, k = BASE; ; k += BASE) {
      const digit = at < text.length ? parseDigit(text.charCodeAt(at++)) : -1;
      if (digit < 0) return "";
      place += digit * weight;
      if (place > 0x7fffffff) return "";
      const threshold = Math.min(T_MAX, Math.max(T_MIN, k - bias));
      if (digit < threshold) break;
      weight *= BASE - threshold;
    }
    const length = points.length + 1;
    let delta = before === 0 ? Math.floor((place - before) / DAMP) : (place - before) >> 1;
    delta += Math.floor(delta / length);
    let k = 0;
    for (; delta > ((BASE - T_MIN) * T_MAX) / 2; k += BASE) delta = Math.floor(delta / (BASE - T_MIN));
    bias = k + Math.floor(((BASE - T_MIN + 1) * delta) / (delta + SKEW));
    point += Math.floor(place / length);
    place %= length;
    if (point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return "";
    points.splice(place++, 0, point);
  }
  return String.fromCodePoint(...points);
}

function parseDigit(code) {
  if (code >= 97 && code <= 122) return code - 97; // a to z
  return code >= 48 && code <= 57 ? code - 22 : -1; // 0 to 9
}
