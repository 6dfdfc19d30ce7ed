// A desktop in the browser, by noVNC, and what a person would see of it: the canvas is looked at before each repaint.
import RFB from "/novnc/core/rfb.js";

const rfb = new RFB(document.getElementById("screen"), new URLSearchParams(location.search).get("display"), { wsProtocols: ["binary"] });
const canvas = () => document.querySelector("#screen canvas");
const MOST_FRAMES = 100000;

// Of a part of the screen, [x, y, width, height], or of all of it.
function pixels(part) {
  const { width, height } = canvas();
  return new Uint32Array(canvas().getContext("2d").getImageData(...(part ?? [0, 0, width, height])).data.buffer);
}

function differ(one, other) {
  if (one.length !== other.length) return true;
  for (let at = 0; at < one.length; at++) if (one[at] !== other[at]) return true;
  return false;
}

// noVNC takes its canvas away when the connection ends: who waits for a picture then must not wait for ever.
const gone = () => window.desktop.ended !== "" || !canvas();

// Calls `seen(now)` at each repaint at which that part is another picture than at the one before, until it says that it has seen enough,
// or the display is gone.
function watch(part, seen, until) {
  return new Promise((done) => {
    if (gone()) return done();
    let before = pixels(part);
    function repaint(now) {
      if (gone()) return done();
      const after = pixels(part);
      const enough = differ(before, after) && seen(now);
      before = after;
      return enough || performance.now() >= until ? done() : requestAnimationFrame(repaint);
    }
    requestAnimationFrame(repaint);
  });
}

window.desktop = {
  connected: false,
  ended: "",
  clipboard: null,
  get size() { return canvas() ? [canvas().width, canvas().height] : [0, 0]; },
  get lit() { return pixels().filter((pixel) => (pixel & 0xffffff) !== 0).length; },
  focus() { rfb.focus(); },
  offer(text) { rfb.clipboardPasteFrom(text); },

  // Milliseconds of each repaint that shows another picture, for so many seconds; and of all repaints how many there were.
  async frames(seconds, part) {
    const times = [];
    let repaints = 0, counting = true;
    (function count() { repaints += 1; if (counting) requestAnimationFrame(count); })();
    await watch(part, (now) => times.push(now) >= MOST_FRAMES, performance.now() + 1000 * seconds);
    counting = false;
    return { times, repaints };
  },

  // Arms a stopwatch: `answer` resolves to the milliseconds from the next key to the repaint that shows another picture, null if none does.
  arm(seconds, part) {
    this.answer = new Promise((done) => {
      window.addEventListener("keydown", async (event) => {
        let at = null;
        await watch(part, (now) => { at = now; return true; }, performance.now() + 1000 * seconds);
        done(at === null ? null : Math.max(at - event.timeStamp, 0));
      }, { capture: true, once: true });
    });
  },
};

rfb.addEventListener("connect", () => { window.desktop.connected = true; });
rfb.addEventListener("disconnect", (event) => { window.desktop.ended = event.detail.clean ? "closed" : "lost"; });
rfb.addEventListener("securityfailure", (event) => { window.desktop.ended = `refused: ${event.detail.reason}`; });
rfb.addEventListener("clipboard", (event) => { window.desktop.clipboard = event.detail.text; });
