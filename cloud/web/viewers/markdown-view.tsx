// Markdown without HTML: what the file's author wrote as tags is shown as text. Links leave by http(s) only and tell
// nobody where they came from; pictures of other hosts are named, not loaded.
import { IconPhotoOff } from "@tabler/icons-react";
import Markdown from "react-markdown";
import remarkGfm from "remark-gfm";

const safeUrl = (url: string): string => (/^https?:\/\//i.test(url) ? url : url.startsWith("#") ? url : "");

export function MarkdownView({ text }: { text: string }) {
  return (
    <div className="md" tabIndex={0} role="region" aria-label="Document">
      <div className="md-in">
        <Markdown
          remarkPlugins={[remarkGfm]}
          urlTransform={safeUrl}
          components={{
            a: ({ href, children }) =>
              href ? (
                <a href={href} target={href.startsWith("#") ? undefined : "_blank"} rel="noopener noreferrer nofollow">
                  {children}
                </a>
              ) : (
                <span title="This link was left out: only http and https are followed">{children}</span>
              ),
            img: ({ alt }) => (
              <span className="tag" title="Pictures are not loaded from a document">
                <IconPhotoOff size={13} aria-hidden /> {alt || "picture"}
              </span>
            ),
          }}
        >
          {text}
        </Markdown>
      </div>
    </div>
  );
}
