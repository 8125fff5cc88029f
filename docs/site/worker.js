/* The search runs in a worker, which browsers refuse to pages that are opened as files. There, a hidden frame takes the
   worker's part: it runs the script, and messages go to and from it. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow, script = inside.document.createElement("script");
      inside.postMessage = data => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.send = data => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      script.src = url;
      script.onload = () => { this.waiting.forEach(this.send); this.waiting = null; };
      inside.document.body.append(script);
      this.frame = frame;
    }
    postMessage(data) { this.waiting ? this.waiting.push(data) : this.send(data); }
    terminate() { this.frame.remove(); }
  };
